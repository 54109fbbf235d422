package sample

// Propose looks the last ids up in what came before: where an earlier stretch of least to
// n ids equals the end, what followed it, at most k ids, is likely to follow again. The
// longest stretch counts, of equals the latest.
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

// Verify picks along proposed ids: rows are those of the position before the first of
// them, and of each of them. It returns the picks up to the first that is not what was
// proposed, that one included. What is picked is what would have been without proposals:
// a pick depends on its position, not on how it came to be computed.
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
