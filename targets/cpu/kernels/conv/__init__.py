"""Convolutions on the channel-blocked layout: direct, depthwise, Winograd and FFT."""
