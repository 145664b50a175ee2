"""The graph tasks of arXiv 2505.03997 against hand-made examples, networkx, and SageMath's procedures step by step."""

import itertools
import random
import shutil
import subprocess
from collections import Counter
from math import sqrt

import networkx as nx
import pytest
import torch

from plateaulens.tasks.algorithms.graph_algorithms import edge_list
from plateaulens.tasks.algorithms.graph_sampling import connected_graphs, symmetries
from plateaulens.tasks.algorithms.graphs import (
    BreadthFirstSearch,
    DepthFirstSearch,
    MinimumSpanningTree,
    ShortestPath,
    TopologicalSort,
)

KINDS = [BreadthFirstSearch, DepthFirstSearch, ShortestPath, TopologicalSort, MinimumSpanningTree]
NAMED = {BreadthFirstSearch: 1, DepthFirstSearch: 1, ShortestPath: 2, TopologicalSort: 0, MinimumSpanningTree: 0}
GENG = shutil.which("geng") or shutil.which("nauty-geng")

each = pytest.mark.parametrize("kind", KINDS)


# From text and back


def pose(task, inputs):
    """The batch of these inputs: the letters of the named nodes, then those of the edges."""
    skip, n = NAMED[type(task)], task.nodes
    ids = [[task.symbols.index(letter) for letter in text] for text in inputs]
    graphs = torch.zeros(len(ids), n, n, dtype=torch.bool)
    for graph, row in zip(graphs, ids):
        graph[row[skip::2], row[skip + 1 :: 2]] = True
    graphs = graphs if type(task) is TopologicalSort else graphs | graphs.mT
    named = torch.tensor([row[:skip] for row in ids], dtype=torch.long).reshape(len(ids), skip)
    return task.assemble(torch.cat([named, edge_list(graphs)], 1), task.solve(graphs, named))


def texts(batch):
    return [batch.task.decode(row) for row in batch.tokens]


def split(task, text):
    """The named nodes, the edges, and the answer of a sequence."""
    before, _, after = text.partition("=")
    skip = NAMED[type(task)]
    return before[:skip], list(zip(before[skip::2], before[skip + 1 :: 2])), after.split("<EOS>")[0]


def sparse(task, count, seed):
    """Inputs of trees with a few more edges: long paths, deep searches."""
    dice, letters = random.Random(seed), task.symbols[: task.nodes]
    for _ in range(count):
        order = dice.sample(letters, task.nodes)
        edges = {frozenset((v, dice.choice(order[max(0, i - 2) : i]))) for i, v in enumerate(order) if i}
        edges |= {frozenset(pair) for pair in itertools.combinations(letters, 2) if dice.random() < 0.1}
        pairs = sorted(map(sorted, edges))
        if type(task) is TopologicalSort:
            order = dice.sample(letters, task.nodes)
            pairs = [sorted(pair, key=order.index) for pair in pairs]
        yield "".join(dice.sample(letters, NAMED[type(task)]) + sum(pairs, []))


def batches(task):
    yield pose(task, list(sparse(task, 60, seed=task.nodes)))
    yield task.sample(60, seed=task.nodes)


# SageMath's procedures, an example at a time


def leads_to(task, edges):
    both = edges if type(task) is TopologicalSort else edges + [(v, u) for u, v in edges]
    return {u: sorted(v for w, v in both if w == u) for u in task.symbols[: task.nodes]}


def breadth_first(near, start):
    order, queue, seen, queues = [], [start], {start}, []
    while queue:
        order.append(queue.pop(0))
        for v in near[order[-1]]:
            if v not in seen:
                seen.add(v)
                queue.append(v)
        queues.append(set(queue))
    return order, queues


def depth_first(near, start):
    order, stack = [], [start]
    while stack:
        v = stack.pop()
        if v not in order:
            order.append(v)
            stack.extend(near[v])
    return order


def stacks_marked_on_push(near, start):
    stack, seen, stacks = [start], {start}, []
    while stack:
        for v in near[stack.pop()]:
            if v not in seen:
                seen.add(v)
                stack.append(v)
        stacks.append(set(stack))
    return stacks


def path_from_both_ends(near, x, y):
    before = [{x: None}, {y: None}]
    levels = [[x], [y]]
    for side in itertools.cycle((0, 1)):
        found = []
        for u in levels[side]:
            for v in near[u]:
                if v in before[side]:
                    continue
                before[side][v] = u
                found.append(v)
                if v in before[1 - side]:
                    halves = []
                    for back in before:
                        halves.append([v])
                        while back[halves[-1][-1]] is not None:
                            halves[-1].append(back[halves[-1][-1]])
                    return halves[0][::-1] + halves[1][1:]
        levels[side] = found
    return None  # never reached: the sides alternate until they meet


def certificate(near):
    order, active, tried = [], set(near), set()
    for root in near:
        stack = [root]
        while stack:
            v = stack[-1]
            if v not in active:
                stack.pop()
            elif v in tried:
                order.append(v)
                active.remove(v)
                stack.pop()
            else:
                tried.add(v)
                stack.extend(w for w in near[v] if w in active)
    return order[::-1]


def kruskal(near, edges):
    parts, kept = [{v} for v in near], []
    for u, v in edges:
        first, second = (next(part for part in parts if w in part) for w in (u, v))
        if first is not second:
            parts = [part for part in parts if part is not first and part is not second] + [first | second]
            kept.append(u + v)
    return kept


def answer(task, named, edges):
    near = leads_to(task, edges)
    match task:
        case BreadthFirstSearch():
            return breadth_first(near, *named)[0]
        case DepthFirstSearch():
            return depth_first(near, *named)
        case ShortestPath():
            return path_from_both_ends(near, *named)
        case TopologicalSort():
            return certificate(near)
        case MinimumSpanningTree():
            return kruskal(near, edges)


def features(task, named, edges, nodes):
    """Of each feature the labels as sets of what is there, and where they are read, counted from `=`."""
    near = leads_to(task, edges)
    rows = [set(near[v]) for v in nodes]
    match task:
        case BreadthFirstSearch():
            return {"queue": (breadth_first(near, *named)[1][:-1], 1), "adjacency_list": (rows, 1)}
        case DepthFirstSearch():
            return {"queue": (stacks_marked_on_push(near, *named)[:-1], 1), "adjacency_list": (rows, 1)}
        case MinimumSpanningTree():
            return {}
    everything = {u + v for u in near for v in near[u]}
    return {"adjacency_list": (rows, 1), "adjacency_matrix": ([everything] * len(nodes), 0)}


def columns(task, name):
    letters = task.symbols[: task.nodes]
    return [u + v for u in letters for v in letters if u != v] if name == "adjacency_matrix" else list(letters)


# Answers

BY_HAND = [
    (BreadthFirstSearch, "CABADBCBDCEDE", "CBEAD"),
    (DepthFirstSearch, "CABADBCBDCEDE", "CEDBA"),
    (ShortestPath, "AEABADBCBDCEDE", "ADE"),
    (TopologicalSort, "BADABCDBECDE", "DEBCA"),
    (MinimumSpanningTree, "ABADBCBDCEDE", "ABADBCCE"),
]


@pytest.mark.parametrize("kind, before, after", BY_HAND)
def test_examples_by_hand(kind, before, after):
    (text,) = texts(pose(kind(nodes=5), [before]))
    assert text.split("<EOS>")[0] == f"{before}={after}"


@pytest.mark.parametrize("nodes", range(4, 12))
@each
def test_answers_equal_the_step_by_step_algorithms(kind, nodes):
    task = kind(nodes=nodes)
    for batch in batches(task):
        for text in texts(batch):
            named, edges, after = split(task, text)
            assert list(after) == list("".join(answer(task, named, edges))), text


@each
def test_answers_agree_with_networkx(kind):
    task = kind(nodes=9)
    for batch in batches(task):
        for named, edges, after in (split(task, text) for text in texts(batch)):
            graph = nx.Graph(edges)
            assert nx.is_connected(graph) and set(graph) == set("ABCDEFGHI")
            assert [tuple(sorted(edge)) for edge in edges] == sorted(tuple(sorted(edge)) for edge in edges)
            match task:
                case ShortestPath():
                    assert named[0] != named[1] and after[0] + after[-1] == named
                    assert len(after) - 1 == nx.shortest_path_length(graph, *named) and nx.is_path(graph, after)
                case TopologicalSort():
                    assert sorted(after) == sorted(graph) and all(after.index(u) < after.index(v) for u, v in edges)
                case MinimumSpanningTree():
                    tree = nx.Graph(zip(after[::2], after[1::2]))
                    assert nx.is_tree(tree) and set(tree) == set(graph) and tree.edges <= graph.edges
                case BreadthFirstSearch():
                    far = nx.shortest_path_length(graph, named)
                    assert sorted(after) == sorted(graph) and [far[v] for v in after] == sorted(far.values())
                case DepthFirstSearch():
                    assert after == "".join(nx.dfs_preorder_nodes(graph, named, sort_neighbors=descending))


def descending(nodes):
    return sorted(nodes, reverse=True)


# Format

SIZES = [(124, 13), (124, 13), (125, 13), (124, 13), (133, 22)]


@pytest.mark.parametrize("kind, size", zip(KINDS, SIZES))
def test_sizes_of_the_paper(kind, size):
    task = kind()
    assert (task.n_ctx, task.n_out) == size and task.d_vocab == 28
    assert kind(answer_only=True).n_out == size[1] - 1
    assert task.sample(3, seed=0).tokens.shape == (3, size[0])


@pytest.mark.parametrize("nodes", [2, 3, 11, 26])
@each
def test_complete_graph_fits_the_context(kind, nodes):
    task = kind(nodes=nodes)
    letters = task.symbols[:nodes]
    before = letters[: NAMED[kind]] + "".join(map("".join, itertools.combinations(letters, 2)))
    batch = pose(task, [before])
    named, edges, after = split(task, texts(batch)[0])
    assert list(after) == list("".join(answer(task, named, edges))) and len(edges) == nodes * (nodes - 1) // 2
    assert texts(batch)[0].endswith("<EOS>" * (1 + task.spare))
    assert all(feature.positions.max() < task.n_ctx - 1 for feature in task.features(batch).values())


@pytest.mark.parametrize("answer_only", [False, True])
@each
def test_loss_mask_covers_the_answer_only(kind, answer_only):
    task = kind(nodes=7, answer_only=answer_only)
    batch = task.sample(50, seed=4)
    for text, loss_mask, targets, out in zip(texts(batch), batch.loss_mask, batch.targets, batch.answers):
        _, _, after = split(task, text)
        counted = ("" if answer_only else "=") + after + "<EOS>"
        assert task.decode(targets[loss_mask]) == task.decode(out[out >= 0]) == counted
    assert len(batch.answer_positions[:, 0].unique()) > 5  # inputs differ in length


@each
def test_loss_floor_is_reachable_by_a_causal_model(kind):
    task = kind(nodes=6)
    batch = task.sample(40, seed=2)
    seen = (batch.inputs == task.equals).cumsum(1) > 0
    said = batch.targets.where(seen, task.equals)  # the end of the edges need not be known
    outputs = 1000.0 * torch.nn.functional.one_hot(said, task.d_vocab)
    assert task.loss(outputs, batch).item() == task.loss_floor() == 0
    assert task.loss_plateau() is None


def test_chance_of_the_released_code():
    chance = [round(kind().published_chance(), 3) for kind in KINDS]
    assert chance == [2.757, 2.757, 3.296, 3.296, 3.296]


@pytest.mark.parametrize("nodes", [1, 27])
@each
def test_invalid_number_of_nodes_raises(kind, nodes):
    with pytest.raises(ValueError, match=f"{kind.__name__} needs 2 to 26 nodes, got nodes={nodes}"):
        kind(nodes=nodes)


# Features


def test_queue_by_hand():
    task = BreadthFirstSearch(nodes=5)
    feature = task.features(pose(task, ["CABADBCBDCEDE"]))["queue"]
    queues = [{v for v, here in zip("ABCDE", row) if here} for row in feature.labels[0]]
    assert queues == [{"B", "E"}, {"A", "D", "E"}, {"A", "D"}, {"D"}]
    assert feature.positions.tolist() == [[14, 15, 16, 17]]  # of C, B, E and A


PUBLISHED = [
    {"queue": "quiet", "adjacency_list": "loud"},
    {"queue": "", "adjacency_list": "loud"},
    {"adjacency_list": "", "adjacency_matrix": ""},
    {"adjacency_list": "", "adjacency_matrix": ""},
    {},
]


@pytest.mark.parametrize("kind, published", zip(KINDS, PUBLISHED))
def test_features_of_the_paper(kind, published):
    found = kind(nodes=5).features(kind(nodes=5).sample(3, seed=0))
    assert {name: feature.published for name, feature in found.items()} == published
    assert all(feature.kind == "labels" for feature in found.values())


@pytest.mark.parametrize("answer_only", [False, True])
@pytest.mark.parametrize("nodes", range(4, 12))
@each
def test_features_equal_the_step_by_step_algorithms(kind, nodes, answer_only):
    task = kind(nodes=nodes, answer_only=answer_only)
    for batch in batches(task):
        found = task.features(batch)
        for i, text in enumerate(texts(batch)):
            named, edges, after = split(task, text)
            expected = features(task, named, edges, after)
            assert found.keys() == expected.keys()
            for name, (sets, shift) in expected.items():
                labels, positions = found[name].labels[i], found[name].positions[i].tolist()
                here = [{c for c, there in zip(columns(task, name), row) if there} for row in labels.tolist()]
                places = [text.index("=") + shift + r for r in range(len(sets))]
                assert here[: len(sets)] == sets and positions == places + [-1] * (len(positions) - len(sets))
                if shift == 1:
                    assert task.decode(batch.tokens[i, places]) == after[: len(places)]


@each
def test_feature_positions_differ_by_example_except_released_ones(kind):
    task = kind(nodes=8)
    batch = task.sample(64, seed=5)
    longest = int(batch.answer_positions[:, 0].argmax())
    for rows in (slice(None), torch.arange(longest, -1, -1)):
        part = batch[rows]
        for name, released in task.features(part, released=True).items():
            true = task.features(part)[name]
            assert len(true.positions[:, 0].unique()) > 5 and torch.equal(true.labels, released.labels)
            assert torch.equal(released.positions >= 0, true.positions >= 0)
            there = torch.where(true.positions < 0, -1, true.positions[0, 0] + torch.arange(true.positions.shape[1]))
            assert torch.equal(released.positions, there) and there.max() < task.n_ctx - 1


# Sampling


def fits(counts, shares):
    """Chi-square within 6 standard deviations of its mean; no item that has no share."""
    total = counts.total()
    chi2 = sum((counts[item] - total * share) ** 2 / (total * share) for item, share in shares.items())
    return counts.keys() <= shares.keys() and abs(chi2 - len(shares) + 1) <= 6 * sqrt(2 * (len(shares) - 1))


def codes(graphs):
    u, v = torch.triu_indices(*graphs.shape[1:], 1)
    return graphs[:, u, v].long() @ (1 << torch.arange(len(u)))


def classes(graphs):
    """A number that says which graphs are isomorphic: the least code of all namings."""
    namings = torch.tensor(list(itertools.permutations(range(graphs.shape[-1]))))
    return torch.stack([codes(graphs[:, naming][:, :, naming]) for naming in namings]).amin(0)


def labeled(nodes):
    """Every connected labeled graph."""
    pairs = list(itertools.combinations(range(nodes), 2))
    for bits in itertools.product((0, 1), repeat=len(pairs)):
        graph = nx.empty_graph(nodes)
        graph.add_edges_from(itertools.compress(pairs, bits))
        if nx.is_connected(graph):
            yield torch.from_numpy(nx.to_numpy_array(graph) > 0)


@pytest.mark.parametrize("nodes, count", [(2, 1), (3, 4), (4, 38)])
def test_labeled_graphs_are_uniform(nodes, count):
    every = codes(torch.stack(list(labeled(nodes)))).tolist()
    drawn = Counter(codes(connected_graphs(4000, nodes, torch.Generator().manual_seed(3))).tolist())
    assert len(every) == count and fits(drawn, dict.fromkeys(every, 1 / count))


@pytest.mark.parametrize("nodes, count", [(2, 1), (3, 2), (4, 6), (5, 21)])
def test_isomorphism_classes_and_node_names_are_uniform(nodes, count):
    every = torch.stack(list(labeled(nodes)))
    kinds = classes(every).tolist()
    share = {code: 1 / count / kinds.count(kind) for code, kind in zip(codes(every).tolist(), kinds)}
    drawn = connected_graphs(15_000, nodes, torch.Generator().manual_seed(3), classes=True)
    assert len(set(kinds)) == count and fits(Counter(codes(drawn).tolist()), share)


def test_symmetries_count_the_isomorphism_classes():
    known = [2, 4, 11, 34, 156, 1044, 12346, 274668, 12005168, 1018997864]  # OEIS A000088
    assert [round(symmetries(nodes)[0].sum().item()) for nodes in range(2, 12)] == known


@pytest.mark.skipif(GENG is None, reason="needs nauty's geng: apt-get install nauty")
def test_isomorphism_classes_agree_with_geng():
    lines = subprocess.run([GENG, "-c", "-q", "6"], capture_output=True, check=True).stdout.split()
    graphs = [torch.from_numpy(nx.to_numpy_array(nx.from_graph6_bytes(line)) > 0) for line in lines]
    every = classes(torch.stack(graphs)).tolist()
    drawn = classes(connected_graphs(4000, 6, torch.Generator().manual_seed(8), classes=True)).tolist()
    assert len(set(every)) == 112 and fits(Counter(drawn), dict.fromkeys(every, 1 / 112))


@pytest.mark.parametrize("kind", KINDS[:3])
def test_named_nodes_are_uniform(kind):
    drawn = Counter(map(tuple, kind(nodes=5).sample(4000, seed=9).tokens[:, : NAMED[kind]].tolist()))
    every = list(itertools.permutations(range(5), NAMED[kind]))
    assert fits(drawn, dict.fromkeys(every, 1 / len(every)))


def test_edge_directions_follow_a_random_order():
    """Of a triangle six orientations are possible, one for each order."""
    drawn = [text.split("=")[0] for text in texts(TopologicalSort(nodes=3).sample(8000, seed=10))]
    triangles = Counter(text for text in drawn if len(text) == 6)
    assert len(triangles) == 6 and fits(triangles, dict.fromkeys(triangles, 1 / 6))


@pytest.mark.parametrize("of_classes", [False, True])
def test_mean_number_of_edges(of_classes):
    """27.5542 of labeled graphs, by recursion over their number of edges; 27.56 of classes."""
    graphs = connected_graphs(20_000, 11, torch.Generator().manual_seed(4), classes=of_classes)
    assert graphs.sum((1, 2)).double().mean().item() / 2 == pytest.approx(27.555, abs=0.1)


@pytest.mark.parametrize("of_classes", [False, True])
@each
def test_sampling_is_pure(kind, of_classes):
    task = kind(classes=of_classes)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = task.sample(64, seed=7), task.sample(64, seed=7), task.sample(64, seed=8)
    assert torch.equal(one.tokens, two.tokens) and not torch.equal(one.tokens, other.tokens)
    assert torch.equal(task.sample(64, seed=torch.Generator().manual_seed(7)).tokens, one.tokens)
    assert torch.equal(before, torch.get_rng_state())
