package vocab

// queue is a priority queue of the mergeable pairs of a piece, as rank<<32|position.
// For short pieces it is a binary heap. For long pieces it keeps the positions of each
// rank in a bucket: they arrive mostly in ascending order, so they are appended and
// taken in constant time and memory is read sequentially, where a heap would take
// O(log n) random accesses. Positions that arrive out of order go to a small heap
// beside the bucket.
type queue struct {
	heap    heap
	byRank  bool
	ranks   heap // ranks with positions; a rank may be listed twice
	buckets map[uint32]*bucket
	free    []*bucket
}

// bucket holds the positions of one rank: those that arrived in ascending order, and
// the late ones.
type bucket struct {
	inOrder []uint32
	taken   int
	late    heap
}

const longPiece = 1 << 12

// reset empties the queue for a piece of n symbols.
func (q *queue) reset(n int) {
	q.heap, q.ranks = q.heap[:0], q.ranks[:0]
	q.byRank = n > longPiece
	for rank, b := range q.buckets {
		delete(q.buckets, rank)
		b.inOrder, b.taken, b.late = b.inOrder[:0], 0, b.late[:0]
		q.free = append(q.free, b)
	}
	if q.byRank && q.buckets == nil {
		q.buckets = map[uint32]*bucket{}
	}
}

func (q *queue) push(x uint64) {
	if !q.byRank {
		q.heap.push(x)
		return
	}
	rank, pos := uint32(x>>32), uint32(x)
	b := q.buckets[rank]
	if b == nil {
		if n := len(q.free); n > 0 {
			b, q.free = q.free[n-1], q.free[:n-1]
		} else {
			b = &bucket{}
		}
		q.buckets[rank] = b
	}
	if b.taken == len(b.inOrder) && len(b.late) == 0 {
		b.inOrder, b.taken = b.inOrder[:0], 0
		q.ranks.push(uint64(rank))
	}
	if n := len(b.inOrder); n == 0 || b.inOrder[n-1] <= pos {
		b.inOrder = append(b.inOrder, pos)
	} else {
		b.late.push(uint64(pos))
	}
}

// pop returns the smallest entry. ok is false if the queue is empty.
func (q *queue) pop() (x uint64, ok bool) {
	if !q.byRank {
		if len(q.heap) == 0 {
			return 0, false
		}
		return q.heap.pop(), true
	}
	for len(q.ranks) > 0 {
		rank := q.ranks[0]
		b := q.buckets[uint32(rank)]
		switch {
		case b.taken == len(b.inOrder) && len(b.late) == 0:
			q.ranks.pop()
			continue
		case b.taken == len(b.inOrder) || len(b.late) > 0 && b.late[0] < uint64(b.inOrder[b.taken]):
			return rank<<32 | b.late.pop(), true
		default:
			b.taken++
			return rank<<32 | uint64(b.inOrder[b.taken-1]), true
		}
	}
	return 0, false
}

// heap is a binary heap, smallest first.
type heap []uint64

func (q *heap) push(x uint64) {
	h := append(*q, x)
	i := len(h) - 1
	for i > 0 {
		p := (i - 1) / 2
		if h[p] <= x {
			break
		}
		h[i] = h[p]
		i = p
	}
	h[i] = x
	*q = h
}

func (q *heap) pop() uint64 {
	h := *q
	top := h[0]
	x := h[len(h)-1]
	h = h[:len(h)-1]
	*q = h
	i := 0
	for {
		c := 2*i + 1
		if c >= len(h) {
			break
		}
		if c+1 < len(h) && h[c+1] < h[c] {
			c++
		}
		if x <= h[c] {
			break
		}
		h[i] = h[c]
		i = c
	}
	if len(h) > 0 {
		h[i] = x
	}
	return top
}
