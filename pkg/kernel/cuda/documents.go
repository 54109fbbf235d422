package cuda

import (
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// Attention in training: whole sequences are documents of equal lengths.

// equalLengths returns the lengths of b sequences of t rows.
func equalLengths(b, t int) []int {
	lengths := make([]int, b)
	for i := range lengths {
		lengths[i] = t
	}
	return lengths
}

// AttendCausal computes attention over whole sequences.
func (s *Set) AttendCausal(y, lse, q, k, v buf, b, t int, a kernel.Heads) {
	s.attendDocuments("attend causal", y, lse, q, k, v, equalLengths(b, t), a)
}

// AttendDocuments computes attention within documents.
func (s *Set) AttendDocuments(y, lse, q, k, v buf, lengths []int, a kernel.Heads) {
	a.Dropout.From = 0 // rows are numbered from the first document's
	s.attendDocuments("attend documents", y, lse, q, k, v, lengths, a)
}

// AttendCausalGrad overwrites dq, dk and dv.
func (s *Set) AttendCausalGrad(dq, dk, dv, dy, y, lse, q, k, v buf, b, t int, a kernel.Heads) {
	s.attendDocumentsGrad("attend causal grad", [3]buf{dq, dk, dv}, dy, y, lse, q, k, v, equalLengths(b, t), a)
}

// AttendDocumentsGrad overwrites dq, dk and dv.
func (s *Set) AttendDocumentsGrad(dq, dk, dv, dy, y, lse, q, k, v buf, lengths []int, a kernel.Heads) {
	a.Dropout.From = 0
	s.attendDocumentsGrad("attend documents grad", [3]buf{dq, dk, dv}, dy, y, lse, q, k, v, lengths, a)
}

// boundsOf lists the first row and the one behind the last of each row's document.
func boundsOf(lengths []int) []int32 {
	var out []int32
	lo := 0
	for _, n := range lengths {
		for range n {
			out = append(out, int32(lo), int32(lo+n))
		}
		lo += n
	}
	return out
}

// shape checks the buffers of attention over rows and panics where there is no kernel.
func (s *Set) shape(op string, rows int, wide, narrow []buf, lse buf, a kernel.Heads) {
	for _, b := range wide {
		must(op, "a buffer of query heads", len(b), rows*a.H*a.D)
	}
	for _, b := range narrow {
		must(op, "a buffer of key/value heads", len(b), rows*a.K*a.D)
	}
	must(op, "lse", len(lse), rows*a.H)
	if a.D > maxHeadDim {
		panic(&kernel.MissingError{Device: s.name, Operation: op})
	}
}

// documentArgs are the arguments behind the buffers.
func documentArgs(bounds driver.Address, a kernel.Heads) []any {
	low, high, threshold, keep, from := dropout(a.Dropout)
	return []any{bounds, uint32(a.H), uint32(a.K), uint32(a.D), uint32(a.Window), float32(a.Scale), float32(a.Softcap),
		low, high, threshold, keep, from}
}

func (s *Set) attendDocuments(op string, y, lse, q, k, v buf, lengths []int, a kernel.Heads) {
	bounds := boundsOf(lengths)
	rows := len(bounds) / 2
	s.shape(op, rows, []buf{y, q}, []buf{k, v}, lse, a)
	f := s.need(op, "document_attend")
	buffers := []any{address(s.device, op, y), address(s.device, op, lse), address(s.device, op, q),
		address(s.device, op, k), address(s.device, op, v)}
	if rows == 0 {
		return
	}
	s.workspace(int64(8 * rows))
	s.send(func(w *worker) error {
		if err := w.upload(w.work, bytesOf(bounds)); err != nil {
			return err
		}
		return w.launch(f, driver.Dim{X: uint32(rows), Y: uint32(a.H), Z: 1}, 0,
			append(buffers, documentArgs(w.work, a)...)...)
	})
}

func (s *Set) attendDocumentsGrad(op string, d [3]buf, dy, y, lse, q, k, v buf, lengths []int, a kernel.Heads) {
	bounds := boundsOf(lengths)
	rows := len(bounds) / 2
	s.shape(op, rows, []buf{d[0], dy, y, q}, []buf{d[1], d[2], k, v}, lse, a)
	delta, queries, keys := s.need(op, "document_delta"), s.need(op, "document_dq"), s.need(op, "document_dkv")
	at := func(b buf) driver.Address { return address(s.device, op, b) }
	dq, dk, dv := at(d[0]), at(d[1]), at(d[2])
	fromY, result, sums, query, key, value := at(dy), at(y), at(lse), at(q), at(k), at(v)
	if rows == 0 {
		return
	}
	n := rows * a.H
	s.workspace(int64(8*rows + 4*n))
	s.send(func(w *worker) error {
		along := w.work + driver.Address(8*rows)
		if err := w.upload(w.work, bytesOf(bounds)); err != nil {
			return err
		}
		err := w.launch(delta, driver.Dim{X: blocks(n, delta.Threads), Y: 1, Z: 1}, 0, along, fromY, result,
			uint32(a.D), uint32(n))
		if err != nil {
			return err
		}
		args := append([]any{fromY, sums, along, query, key, value}, documentArgs(w.work, a)...)
		err = w.launch(queries, driver.Dim{X: uint32(rows), Y: uint32(a.H), Z: 1}, 0, append([]any{dq}, args...)...)
		if err != nil {
			return err
		}
		return w.launch(keys, driver.Dim{X: uint32(rows), Y: uint32(a.K), Z: 1}, 0, append([]any{dk, dv}, args...)...)
	})
}
