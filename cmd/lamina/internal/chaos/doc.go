// Package chaos implements the command `lamina chaos`. It starts a fleet of real processes of one
// lamina binary on this machine, puts load on it, injects faults into named members by a schedule, and
// says which of Lamina's promises held, with figures.
//
// A run has three phases. First every request of the load is answered once, undisturbed, and its text
// kept. Then the calm phase proves that traffic flows and that texts repeat; without it the run is
// invalid, because a fleet that serves nothing breaks no promise. Last comes the load with faults: each
// stream is compared with its undisturbed text, and each gap between two tokens is attributed to a
// fault.
//
//	manifest.go  the file that describes a run; json.go reads it with the line of each field
//	fleet.go     processes and their addresses; member.go one process; proxy.go the network before it
//	fault.go     when a fault comes, whom it hits, and what it does
//	judge.go     streams and faults to promises; pure
//	run.go       the phases
//
// Members are named router-0, tokenizer-0, sampler-0, shard-R-S for stage S of replica R, and registry.
// A registry in this process (internal/agent) takes the place of Consul. Two or more routers get an
// embedded NATS server for the journal of their requests, and the load resumes streams that break.
// Signals are those of Unix; on Windows members can be killed and restarted, but not paused.
package chaos
