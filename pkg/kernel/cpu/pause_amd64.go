package cpu

// pause waits a moment.
func pause()
