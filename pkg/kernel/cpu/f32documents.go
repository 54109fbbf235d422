package cpu

import "github.com/lamina-mesh/lamina/pkg/kernel"

// Attention over documents of different lengths. A block of rows of a document is computed like one of a
// sequence, and blocks do not change results. All blocks of all documents are one parallel loop, since one
// short document has too little work for several threads.

// document is a run of rows.
type document struct{ start, rows int }

// documentsOf returns the documents that have rows, and the number of pairs of rows in all of them.
func documentsOf(op string, lengths []int, rows int) (docs []document, pairs int) {
	start := 0
	for _, t := range lengths {
		if t > 0 {
			docs = append(docs, document{start, t})
		}
		start, pairs = start+t, pairs+t*t
	}
	must(op, "lengths", start, rows)
	return docs, pairs
}

// AttendDocuments computes attention within each document.
func (s *Set) AttendDocuments(y, lse, q, k, v kernel.Buffer[float32], lengths []int, a kernel.Heads) {
	docs, pairs := documentsOf("attend documents", lengths, len(lse)/a.H)
	rows := len(lse) / a.H
	must("attend documents", "q", len(q), rows*a.H*a.D)
	must("attend documents", "y", len(y), rows*a.H*a.D)
	must("attend documents", "k", len(k), rows*a.K*a.D)
	must("attend documents", "v", len(v), rows*a.K*a.D)
	type block struct {
		document
		lo, hi int
	}
	var blocks []block
	for _, d := range docs {
		for lo, n := 0, s.causalBlock(d.rows); lo < d.rows; lo += n {
			blocks = append(blocks, block{d, lo, min(lo+n, d.rows)})
		}
	}
	s.each(len(blocks)*a.H, pairs*a.H*a.D, func(i int) {
		b := blocks[i/a.H]
		c := s.causalHead(b.start, i%a.H, b.rows, a, false)
		defer c.done()
		c.forward(y[c.qo:], lse[c.lo:], q[c.qo:], k[c.ko:], v[c.ko:], b.lo, b.hi)
	})
}

// AttendDocumentsGrad overwrites dq, dk and dv.
func (s *Set) AttendDocumentsGrad(dq, dk, dv, dy, y, lse, q, k, v kernel.Buffer[float32], lengths []int,
	a kernel.Heads) {
	docs, pairs := documentsOf("attend documents grad", lengths, len(lse)/a.H)
	rows := len(lse) / a.H
	for _, x := range []struct {
		name string
		n    int
		want int
	}{{"dy", len(dy), a.H}, {"y", len(y), a.H}, {"q", len(q), a.H}, {"dq", len(dq), a.H},
		{"k", len(k), a.K}, {"dk", len(dk), a.K}, {"v", len(v), a.K}, {"dv", len(dv), a.K}} {
		must("attend documents grad", x.name, x.n, rows*x.want*a.D)
	}
	s.each(len(docs)*a.K, 5*pairs*a.H*a.D/2, func(i int) {
		d := docs[i/a.K]
		c := s.causalHead(d.start, i%a.K*(a.H/a.K), d.rows, a, true)
		defer c.done()
		c.backward(dq, dk, dv, dy, y, lse, q, k, v)
	})
}
