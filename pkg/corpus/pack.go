package corpus

import (
	"fmt"
	"math/bits"
	"slices"
	"sort"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Names of packings.
const (
	PackConcat  = "concat"   // documents one behind the other; samples begin anywhere
	PackBestFit = "best-fit" // documents that fit are not divided
)

// Packing cuts documents into samples of a fixed length. In a sample every token of a document, with its end
// id, is the target of one row. The row's id is the token before it, or the vocabulary's begin id for a
// document's first token. So all samples together have every token as a target once. Rows that are left over
// are masked.
type Packing struct {
	data     *Data
	from, to int64 // documents
	length   int   // rows of a sample

	// concat: the samples are the tokens [first, last) in order.
	first, last int64

	// best-fit: samples below full are whole; chunks[i] is the number of those in the documents before from+i+1.
	bestFit bool
	chunks  []int64
	full    int64
	pieces  []piece // the ends of documents, in the order of the samples that hold them
	bins    []int64 // the first piece of each sample, and the number of pieces
	masked  int64
}

// piece is a part of a document that fills a sample partly.
type piece struct {
	document int64
	n        int32 // rows, at the document's end
}

// Sample is one sequence.
type Sample struct {
	IDs       []int32
	Targets   []int32 // -1 masks a row
	Documents []int   // how many rows belong to each document; the masked rows at the end are one, too
}

// NewPacking packs the documents [from, to) of data into samples of the given length.
func NewPacking(data *Data, from, to int64, length int, name string) (*Packing, error) {
	if from < 0 || from >= to || to > data.Documents() || length < 1 {
		return nil, fmt.Errorf("pack %s: documents %d to %d of %d into %d rows", data.Dir, from, to, data.Documents(),
			length)
	}
	p := &Packing{data: data, from: from, to: to, length: length}
	switch name {
	case PackConcat:
		p.first, p.last = data.end(from-1), data.end(to-1)
		p.masked = p.Samples()*int64(length) - (p.last - p.first)
	case PackBestFit:
		p.bestFit = true
		p.fit()
	default:
		return nil, fault.Field("data.packing", "%q is neither %s nor %s", name, PackConcat, PackBestFit)
	}
	return p, nil
}

// fit divides documents into whole samples and ends, and puts the ends into bins of length rows: the longest
// first, each into the bin that it fills best (best-fit decreasing).
func (p *Packing) fit() {
	t := int64(p.length)
	ends := make([][]int64, p.length) // documents by the length of their ends
	for i := p.from; i < p.to; i++ {
		_, from, to := p.data.Document(i)
		p.full += (to - from) / t
		p.chunks = append(p.chunks, p.full)
		if n := (to - from) % t; n > 0 {
			ends[n] = append(ends[n], i)
		}
	}
	in := bestFit(ends, p.length)
	var used int64
	for _, bin := range in {
		p.bins = append(p.bins, int64(len(p.pieces)))
		p.pieces = append(p.pieces, bin...)
		for _, x := range bin {
			used += int64(x.n)
		}
	}
	p.masked = int64(len(in))*t - used
	p.bins = append(p.bins, int64(len(p.pieces)))
}

// bestFit puts documents into bins of length rows: the longest first, each into the bin that it fills best.
// ends[n] lists the documents of n rows.
func bestFit(ends [][]int64, length int) [][]piece {
	open := make([][]int64, length) // bins by the rows that they have left
	left := bitset(make([]uint64, (length+63)/64))
	var in [][]piece
	for n := len(ends) - 1; n > 0; n-- {
		for _, document := range ends[n] {
			at, bin := -1, int64(0)
			if n < length {
				at = left.next(n)
			}
			if at < 0 {
				at, bin = length, int64(len(in))
				in = append(in, nil)
			} else {
				last := len(open[at]) - 1
				bin, open[at] = open[at][last], open[at][:last]
				if last == 0 {
					left.clear(at)
				}
			}
			in[bin] = append(in[bin], piece{document, int32(n)})
			if rest := at - n; rest > 0 {
				open[rest] = append(open[rest], bin)
				left.set(rest)
			} else {
				in[bin] = slices.Clip(in[bin])
			}
		}
	}
	return in
}

// BestFit puts items of the given lengths, each of 1 to capacity, into bins: the longest first, each into the
// bin that it fills best. It returns the indices of the items of every bin.
func BestFit(lengths []int, capacity int) [][]int {
	ends := make([][]int64, capacity+1)
	for i, n := range lengths {
		if n < 1 || n > capacity {
			panic(fmt.Sprintf("best fit: item %d of %d does not fit bins of %d", i, n, capacity))
		}
		ends[n] = append(ends[n], int64(i))
	}
	var out [][]int
	for _, bin := range bestFit(ends, capacity) {
		var items []int
		for _, p := range bin {
			items = append(items, int(p.document))
		}
		out = append(out, items)
	}
	return out
}

// Pad fills a sample up to a number of rows. The rows are a document of their own, and their targets are
// masked: padding is known by its place, whatever id it has.
func (s *Sample) Pad(length int, id int32) {
	n := length - len(s.IDs)
	if n <= 0 {
		return
	}
	for range n {
		s.IDs, s.Targets = append(s.IDs, id), append(s.Targets, -1)
	}
	s.Documents = append(s.Documents, n)
}

// bitset is a set of small numbers.
type bitset []uint64

func (b bitset) set(i int)   { b[i/64] |= 1 << (i % 64) }
func (b bitset) clear(i int) { b[i/64] &^= 1 << (i % 64) }

// next returns the least number of at least i, or -1.
func (b bitset) next(i int) int {
	word := i / 64
	rest := b[word] >> (i % 64) << (i % 64)
	for rest == 0 {
		if word++; word == len(b) {
			return -1
		}
		rest = b[word]
	}
	return 64*word + bits.TrailingZeros64(rest)
}

// Samples is the number of samples.
func (p *Packing) Samples() int64 {
	if p.bestFit {
		return p.full + int64(len(p.bins)) - 1
	}
	return (p.last - p.first + int64(p.length) - 1) / int64(p.length)
}

// Tokens is the number of targets of all samples.
func (p *Packing) Tokens() int64 { return p.Samples()*int64(p.length) - p.masked }

// Waste is the share of rows that are masked.
func (p *Packing) Waste() float64 { return float64(p.masked) / float64(p.Samples()*int64(p.length)) }

// Sample reads sample i.
func (p *Packing) Sample(i int64) (*Sample, error) {
	if i < 0 || i >= p.Samples() {
		return nil, fmt.Errorf("read sample %d of %d of %s", i, p.Samples(), p.data.Dir)
	}
	s := &Sample{IDs: make([]int32, 0, p.length), Targets: make([]int32, 0, p.length)}
	var err error
	switch t := int64(p.length); {
	case p.bestFit && i < p.full:
		k := sort.Search(len(p.chunks), func(k int) bool { return p.chunks[k] > i })
		chunk := i
		if k > 0 {
			chunk -= p.chunks[k-1]
		}
		err = p.add(s, p.from+int64(k), chunk*t, (chunk+1)*t)
	case p.bestFit:
		for _, x := range p.pieces[p.bins[i-p.full]:p.bins[i-p.full+1]] {
			_, from, to := p.data.Document(x.document)
			if err = p.add(s, x.document, to-from-int64(x.n), to-from); err != nil {
				break
			}
		}
	default:
		at, end := p.first+i*t, min(p.last, p.first+(i+1)*t)
		d := p.from + int64(sort.Search(int(p.to-p.from), func(k int) bool { return p.data.end(p.from+int64(k)) > at }))
		for err == nil && at < end {
			begins, ends := p.data.end(d-1), min(end, p.data.end(d))
			err = p.add(s, d, at-begins, ends-begins)
			at, d = ends, d+1
		}
	}
	if err != nil {
		return nil, err
	}
	s.Pad(p.length, int32(p.data.Index.Vocabulary.End))
	return s, nil
}

// add adds tokens [from, to) of a document.
func (p *Packing) add(s *Sample, document, from, to int64) error {
	shard, begin, _ := p.data.Document(document)
	var err error
	if from == 0 {
		s.IDs = append(s.IDs, int32(p.data.Index.Vocabulary.Begin))
		s.IDs, err = shard.Read(s.IDs, begin, begin+to-1)
	} else {
		s.IDs, err = shard.Read(s.IDs, begin+from-1, begin+to-1)
	}
	if err != nil {
		return err
	}
	s.Targets, err = shard.Read(s.Targets, begin+from, begin+to)
	s.Documents = append(s.Documents, int(to-from))
	return err
}
