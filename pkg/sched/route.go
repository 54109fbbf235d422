package sched

// Candidate is a pipeline to which a sequence could be sent.
type Candidate struct {
	Load   int // sequences that it has been given and that have not ended
	Cached int // positions of the sequence's log in its prefix cache
}

// routeSlack is how many more sequences than the least loaded pipeline another one may have and still
// be preferred for its prefix cache; half of the least load is allowed as well.
const routeSlack = 4

// Route returns the index of the pipeline that a sequence should be sent to: the one with the longest
// cached prefix, unless it has so much more to do than the least loaded one that computing the prefix
// again is cheaper. Among equals the least loaded one wins, and then the first.
func Route(candidates []Candidate) int {
	if len(candidates) == 0 {
		return none
	}
	least := 0
	for i, c := range candidates {
		if c.Load < candidates[least].Load {
			least = i
		}
	}
	bound := candidates[least].Load + max(routeSlack, candidates[least].Load/2)
	best := least
	for i, c := range candidates {
		b := candidates[best]
		if c.Load <= bound && (c.Cached > b.Cached || c.Cached == b.Cached && c.Load < b.Load) {
			best = i
		}
	}
	return best
}
