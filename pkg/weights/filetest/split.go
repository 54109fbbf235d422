package filetest

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Split cuts a GGUF file into parts as llama.cpp's gguf-split does: the first part
// holds the metadata, every part an equal share of the tensors in the order of the
// table and the keys split.no, split.count and split.tensors.count. The caller names
// the files NAME-00001-of-0000N.gguf.
func Split(file []byte, parts int) (out [][]byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			out, err = nil, errCut
		}
	}()
	s := &ggufScanner{binaryFile: binaryFile{data: file}}
	keys, table, align := s.header()
	pad := func(b []byte, align uint64) []byte {
		for uint64(len(b))%align != 0 {
			b = append(b, 0)
		}
		return b
	}
	data := uint64(len(pad(file[:s.at:s.at], align)))
	le := binary.LittleEndian
	count, tensors := le.Uint64(file[16:]), le.Uint64(file[8:])
	if parts < 1 || uint64(parts) > tensors {
		return nil, fmt.Errorf("split %d tensors into %d parts", tensors, parts)
	}
	// The entries of the table: where each lies, and its data.
	type entry struct {
		text   []byte // name, dimensions and type
		offset uint64
	}
	var entries []entry
	for at := table; at < s.at; {
		from := at
		at += 8 + int(le.Uint64(file[at:]))
		at += 4 + 8*int(le.Uint32(file[at:])) + 4
		entries = append(entries, entry{file[from:at], le.Uint64(file[at:])})
		at += 8
	}
	// A tensor's data end where the next one's begin, padding included.
	ends := []uint64{uint64(len(file)) - data}
	for _, e := range entries {
		ends = append(ends, e.offset)
	}
	slices.Sort(ends)
	bytes := func(offset uint64) []byte {
		i, _ := slices.BinarySearch(ends, offset+1)
		if i == len(ends) || ends[i] > uint64(len(file))-data {
			return nil // a tensor without elements
		}
		return file[data+offset : data+ends[i]]
	}
	for p := range parts {
		share := entries[p*len(entries)/parts : (p+1)*len(entries)/parts]
		b := append([]byte("GGUF"), file[4:8]...)
		b = le.AppendUint64(b, uint64(len(share)))
		metadata := []byte{}
		n := uint64(3)
		if p == 0 {
			metadata, n = file[keys:table], count+3
		}
		b = append(le.AppendUint64(b, n), metadata...)
		number := func(key string, kind uint32, v uint32) {
			b = append(le.AppendUint64(b, uint64(len(key))), key...)
			b = le.AppendUint32(b, kind)
			if kind == 2 {
				b = le.AppendUint16(b, uint16(v))
			} else {
				b = le.AppendUint32(b, v)
			}
		}
		if p > 0 {
			align = 32 // the key for another alignment stays in the first part
		}
		number("split.no", 2, uint32(p))
		number("split.count", 2, uint32(parts))
		number("split.tensors.count", 5, uint32(tensors))
		var body []byte
		for _, e := range share {
			b = le.AppendUint64(append(b, e.text...), uint64(len(body)))
			body = pad(append(body, bytes(e.offset)...), align)
		}
		out = append(out, append(pad(b, align), body...))
	}
	return out, nil
}
