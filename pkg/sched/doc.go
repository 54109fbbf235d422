// Package sched decides what a pipeline computes next. A Scheduler is the one owner of a pipeline's
// waiting queue, its running sequences, its KV pages and its prefix cache. It is pure: Step takes the
// time and the events that have happened since, and returns the commands to carry out. It has no
// clock, socket, goroutine, logger, map order or random source of its own, so the same events give
// the same commands, and a simulator can drive it (tests/sim).
//
// The router calls it. One goroutine calls Step with all events that have arrived, and again at least
// every 100 ms without any, and carries out the commands in order: it sends batches to the first
// stage, adds sequences to the sampler and reports results to requests.
//
// # A sequence
//
// Submit puts a sequence into the waiting queue and adds it to the sampler. When there are KV pages
// for its log it is admitted and runs: its prompt is computed in chunks, then one row for each token.
// A page is taken when a row needs it. When no page is left, the least urgent sequence is preempted:
// it gives its pages back and waits again; what it has computed stays in the prefix cache as long as
// nobody needs the pages, and the rest is computed again. The text does not depend on any of this.
//
// # Pages
//
// The scheduler assigns page ids and sends changes of block tables with the entries. A page is full,
// free, or being written by exactly one sequence. Full pages are found again by the tokens they hold
// and by all before them, within one tenant and namespace (Submit), and are shared with reference
// counts. A sequence whose next page is in flight for another one waits for it rather than compute it as
// well (share.go).
//
// Pages that no sequence uses are evicted, those of one tenant least recently used first. Tenants with work
// or pages share the pool by their weights. A tenant that has its share loses pages of its own; one that has
// less takes them from the tenant that exceeds its share the most. So no flood of one tenant drives pages of
// another out below the share of the other. Only a sequence that cannot fit otherwise, and beside which
// nothing runs, takes what it lacks from anybody.
//
// # Speculation
//
// Draft tokens are sent with the row that is due; the sampler picks from every row as always, and a draft
// token is accepted if it is the one picked. While such a window travels, the proposer goes on after its
// draft tokens, and what it proposes is sent behind them as further windows, where the pipeline has a place
// for a batch that no sequence is about to use. When a draft token is rejected, nothing more comes of any
// window behind it. Speculation is off for a sequence while it does not pay: see windows.go.
//
// # Who is next
//
// A lower priority number is served first, and waiting improves it by one for every ten seconds.
// Within a priority the tenant that has received the least service is next (virtual token counter;
// Sheng et al., "Fairness in Serving Large Language Models", 2024), and within a tenant the oldest.
package sched
