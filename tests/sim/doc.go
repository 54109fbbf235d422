// Package sim is a deterministic simulator of a fleet. It runs the real scheduler (pkg/sched), the real
// state machine of a generation (pkg/session), the real planner (pkg/plan) and the real KV page pool
// (pkg/kvcache) under a virtual clock, and puts small models in the place of everything that does I/O:
//
//   - shards (shard.go): stages with leases and block tables. A page does not hold keys and values but,
//     for each position, a hash of the tokens up to it. So any wrong reuse of a page is seen at once.
//   - samplers (sampler.go), which pick tokens from those hashes.
//   - routers (router.go, pipe.go, request.go): discovery, pipelines, and requests that are replayed
//     elsewhere when a pipeline is lost, as in services/router.
//   - the network (net.go): streams with delays, partitions, lost and repeated frames.
//   - faults (faults.go): killed, frozen and slow processes, clock steps, refusals.
//   - the load (load.go): arrivals, tenants, priorities, shared prefixes, cancels, slow readers.
//
// Run checks in every step that nothing happens that the protocol forbids, and that every request gets
// exactly the tokens that an undisturbed run would give it (check.go). A run is a function of its
// Scenario, and Random draws a Scenario from a seed. So a seed that fails can be run again, with a
// transcript of all events and commands.
package sim
