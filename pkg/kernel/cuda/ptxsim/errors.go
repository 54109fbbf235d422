package ptxsim

import (
	"errors"
	"fmt"
)

// SourceError reports PTX that Load refuses.
type SourceError struct {
	Line  int    // from 1
	Instr string // the statement, or empty
	Text  string // what is wrong
}

// Error names the line and the instruction.
func (e *SourceError) Error() string {
	if e.Instr == "" {
		return fmt.Sprintf("ptx line %d: %s", e.Line, e.Text)
	}
	return fmt.Sprintf("ptx line %d: %s: %s", e.Line, e.Instr, e.Text)
}

// Check names what a Fault broke.
type Check string

// The checks of a launch.
const (
	CheckBounds    Check = "bounds"        // an address outside every allocation, or outside shared or local memory
	CheckAlign     Check = "alignment"     // an address that is not a multiple of the size of the access
	CheckUnset     Check = "uninitialised" // a register or a byte of shared memory that nothing wrote
	CheckRace      Check = "race"          // two accesses without an order, of which one writes
	CheckAsync     Check = "cp.async"      // an access to bytes that a cp.async still writes
	CheckBarrier   Check = "barrier"       // a barrier that not all threads reach, or in divergent code
	CheckWarp      Check = "warp"          // a warp instruction whose members do not execute it together
	CheckSteps     Check = "steps"         // more instructions than the limit of a launch
	CheckUndefined Check = "undefined"     // a result that PTX leaves undefined, such as a division by zero
)

// Fault reports a launch that broke a rule of PTX. Memory holds what was written before.
type Fault struct {
	Check  Check
	Kernel string
	Line   int    // line of the PTX source, from 1
	Instr  string // the instruction there
	Block  [3]int
	Thread [3]int // the thread, or the first thread of the warp
	Text   string
}

// Error names the kernel, the line, the block and the thread.
func (e *Fault) Error() string {
	return fmt.Sprintf("kernel %s, line %d, block %v, thread %v: %s: %s (%s)",
		e.Kernel, e.Line, e.Block, e.Thread, e.Check, e.Text, e.Instr)
}

// Errors of the arguments of Launch, and of the memory of a Device.
var (
	ErrNoKernel  = errors.New("no such kernel")
	ErrArguments = errors.New("arguments do not match the parameters")
	ErrShape     = errors.New("launch shape is out of range")
	ErrMemory    = errors.New("out of device memory")
	ErrAddress   = errors.New("address is not in an allocation")
)
