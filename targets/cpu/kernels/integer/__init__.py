"""GEMMs and convolutions of 8-bit integers with exact sums in int32."""
