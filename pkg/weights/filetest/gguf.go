package filetest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// span is a field of a binary file.
type span struct {
	at, size int // bytes; strings have any size, numbers 1, 2, 4 or 8
	text     bool
	name     string
	entry    bool // of a long list
}

// binaryFile is a file whose fields are numbers of fixed width and strings.
type binaryFile struct {
	data []byte
	all  []span
	main int
}

func (b *binaryFile) fields() (n, main int) { return len(b.all), b.main }

func (b *binaryFile) name(field int) string {
	s := b.all[field]
	return fmt.Sprintf("%s at %d", s.name, s.at)
}

// numbers returns the values that a number may be set to: 0, 1, -1, the largest signed value and
// one more, the neighbours of its own value, the file's size and one more.
const numbers = 9

// texts returns the values that the bytes of a string may be set to: a byte that is not UTF-8 at
// its start or its end, a NUL, a space, the mark of a word.
const texts = 6

func (b *binaryFile) values(field int) int {
	if b.all[field].text {
		return texts
	}
	return numbers
}

func (b *binaryFile) number(s span) uint64 {
	var v [8]byte
	copy(v[:], b.data[s.at:s.at+min(s.size, 8)])
	return binary.LittleEndian.Uint64(v[:])
}

func (b *binaryFile) render(edits []edit) []byte {
	out := slices.Clone(b.data)
	for _, e := range edits {
		s := b.all[e.field]
		to := out[s.at : s.at+s.size]
		if len(to) == 0 {
			continue
		}
		if s.text && e.value < texts {
			switch e.value {
			case 0:
				to[0] = 0x80
			case 1:
				to[len(to)-1] = 0xe2
			case 2:
				to[len(to)/2] = 0xff
			case 3:
				to[0] = 0
			case 4:
				to[len(to)-1] = ' '
			case 5:
				copy(to, "\u2581")
			}
			continue
		}
		largest := uint64(1)<<(min(s.size, 8)*8-1) - 1
		own := b.number(s)
		size := uint64(len(b.data))
		values := [numbers]uint64{0, 1, ^uint64(0), largest, largest + 1, own + 1, own - 1, size, size + 1}
		v := uint64(0)
		if e.value < b.values(e.field) {
			v = values[e.value]
		} else {
			v = b.number(b.all[e.value-b.values(e.field)])
		}
		var raw [8]byte
		binary.LittleEndian.PutUint64(raw[:], v)
		copy(to, raw[:])
	}
	return out
}

// order puts the fields that are not entries of long lists first.
func (b *binaryFile) order() {
	slices.SortStableFunc(b.all, func(x, y span) int {
		switch {
		case x.entry == y.entry:
			return 0
		case y.entry:
			return -1
		}
		return 1
	})
	for b.main < len(b.all) && !b.all[b.main].entry {
		b.main++
	}
}

// ggufScanner walks a valid GGUF file.
type ggufScanner struct {
	binaryFile
	at int
}

var errCut = errors.New("the file ends early")

func (s *ggufScanner) take(name string, size int, text, entry bool) uint64 {
	if size < 0 || s.at+size > len(s.data) {
		panic(errCut)
	}
	f := span{s.at, size, text, name, entry}
	s.all = append(s.all, f)
	s.at += size
	return s.number(f)
}

func (s *ggufScanner) text(name string, entry bool) string {
	n := int(s.take(name+" length", 8, false, entry))
	at := s.at
	s.take(name, n, true, entry)
	return string(s.data[at:s.at])
}

func (s *ggufScanner) value(name string, kind uint64, entry bool) uint64 {
	switch kind {
	case 0, 1, 7:
		return s.take(name, 1, false, entry)
	case 2, 3:
		return s.take(name, 2, false, entry)
	case 4, 5, 6:
		return s.take(name, 4, false, entry)
	case 10, 11, 12:
		return s.take(name, 8, false, entry)
	case 8:
		s.text(name, entry)
	case 9:
		of := s.take(name+" element type", 4, false, entry)
		n := s.take(name+" count", 8, false, entry)
		for i := range n {
			s.value(fmt.Sprintf("%s[%d]", name, i), of, n > 8)
		}
	}
	return 0
}

// header reads the keys and the table of tensors. It returns the alignment of the data.
func (s *ggufScanner) header() (keys, table int, align uint64) {
	s.take("magic", 4, false, false)
	s.take("version", 4, false, false)
	tensors, count := s.take("tensor count", 8, false, false), s.take("metadata count", 8, false, false)
	align = 32
	keys = s.at
	for range count {
		key := s.text("key", false)
		kind := s.take(key+" type", 4, false, false)
		if v := s.value(key, kind, false); key == "general.alignment" {
			align = v
		}
	}
	table = s.at
	for range tensors {
		name := s.text("tensor name", false)
		dims := s.take(name+" dimensions", 4, false, false)
		for range dims {
			s.take(name+" dimension", 8, false, false)
		}
		s.take(name+" type", 4, false, false)
		s.take(name+" offset", 8, false, false)
	}
	return keys, table, align
}

func parseGGUF(file []byte) (b *binaryFile, err error) {
	defer func() {
		if r := recover(); r != nil {
			b, err = nil, errCut
		}
	}()
	s := &ggufScanner{binaryFile: binaryFile{data: file}}
	s.header()
	s.order()
	return &s.binaryFile, nil
}
