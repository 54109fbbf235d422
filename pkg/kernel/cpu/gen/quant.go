package main

// quant writes the loops over quantised weights.
func quant(a *asm) {}
