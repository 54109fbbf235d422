package sample

// Propose is the n-gram proposer of speculative decoding. It finds where the last ids occurred
// before and returns up to k ids that followed there. A match has at least least ids, and at
// most n ids of it count. The longest match wins, and of equally long ones the latest.
func Propose(ids []int32, least, n, k int) []int32 {
	best, at := 0, 0
	for i, length := range suffixes(ids) {
		if length = min(length, n); length >= max(least, 1) && length >= best && i+1 < len(ids) {
			best, at = length, i+1
		}
	}
	if best == 0 {
		return nil
	}
	return ids[at:min(at+k, len(ids))]
}

// Verify samples along draft tokens. rows are the logits rows of the position before the first
// draft token and of each draft token. It returns the sampled tokens up to and including the
// first that differs from its draft token. They are the same as without drafts: a sampled token
// depends on its position, not on the batch that computed the row.
func (p *Picker) Verify(rows [][]float32, lse []float64, proposed []int32, h *History, position int) ([]Choice, error) {
	var out []Choice
	for i, row := range rows {
		c, err := p.PickRow(row, lse[i], h, position+i)
		if err != nil {
			return out, err
		}
		out = append(out, c)
		h.Emit(c.ID, float64(float32(c.Logprob)))
		if i == len(proposed) || c.ID != proposed[i] {
			break
		}
	}
	return out, nil
}
