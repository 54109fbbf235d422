package cpu

// pause executes PAUSE, which tells the processor that the caller spins.
func pause()
