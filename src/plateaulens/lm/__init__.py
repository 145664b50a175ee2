"""What others trained: checkpoints of Pythia, OLMo-2 and any other, streamed, audited and measured."""
