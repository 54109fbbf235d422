//go:build race

package weights_test

// raceEnabled says that the race detector slows the test down.
const raceEnabled = true
