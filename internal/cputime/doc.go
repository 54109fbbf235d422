// Package cputime reads how much processor time the process or the calling thread has
// used. Tests of time budgets use it instead of the clock, because a busy machine
// stretches the clock but not the processor time. Where the platform has no such
// counter, both functions return the time since the process started.
package cputime
