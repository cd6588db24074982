"""LSTM, GRU and RNN: all steps forward, and those of a training step back through time."""
