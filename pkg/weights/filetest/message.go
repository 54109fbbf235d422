package filetest

import (
	"encoding/binary"
	"fmt"
	"math"
)

// message is a protocol buffer: a list of fields, some of which are messages.
type message struct{ items []*item }

// item is one field of a message.
type item struct {
	number int
	wire   uint64 // 0 varint, 2 bytes, 5 fixed 32 bits
	value  uint64 // of a varint or fixed field
	data   []byte // of bytes
	sub    *message
	path   string
}

// messageFile is a SentencePiece model: a ModelProto.
type messageFile struct {
	root *message
	all  []part
	main int
}

// part is what may be changed of a field: its value, its length, its wire type, or a
// byte of its text.
type part struct {
	*item
	what string
}

// messageValues are what a number may become.
var messageValues = []uint64{
	0, 1, math.MaxUint64, math.MaxInt64, math.MaxInt64 + 1, math.MaxInt32, math.MaxInt32 + 1, math.MaxUint32,
	uint64(math.Float32bits(float32(math.NaN()))), uint64(math.Float32bits(float32(math.Inf(1)))),
	uint64(math.Float32bits(math.MaxFloat32)),
}

func (m *messageFile) fields() (n, main int) { return len(m.all), m.main }

func (m *messageFile) name(field int) string { return m.all[field].path + " " + m.all[field].what }

func (m *messageFile) values(int) int { return len(messageValues) }

func (m *messageFile) own(p part) uint64 {
	switch p.what {
	case "length":
		return uint64(len(p.data))
	case "wire type":
		return p.wire
	}
	return p.value
}

func (m *messageFile) render(edits []edit) []byte {
	changed := map[*item]map[string]uint64{}
	for _, e := range edits {
		p := m.all[e.field]
		v := uint64(0)
		if e.value < len(messageValues) {
			v = messageValues[e.value]
		} else {
			v = m.own(m.all[e.value-len(messageValues)])
		}
		if changed[p.item] == nil {
			changed[p.item] = map[string]uint64{}
		}
		changed[p.item][p.what] = v
	}
	return m.root.append(nil, changed)
}

func (m *message) append(out []byte, changed map[*item]map[string]uint64) []byte {
	for _, it := range m.items {
		c := changed[it]
		pick := func(what string, otherwise uint64) uint64 {
			if v, ok := c[what]; ok {
				return v
			}
			return otherwise
		}
		out = binary.AppendUvarint(out, uint64(it.number)<<3|pick("wire type", it.wire)&7)
		switch it.wire {
		case 0:
			out = binary.AppendUvarint(out, pick("value", it.value))
		case 5:
			out = binary.LittleEndian.AppendUint32(out, uint32(pick("value", it.value)))
		case 2:
			data := it.data
			if it.sub != nil {
				data = it.sub.append(nil, changed)
			}
			if v, ok := c["text"]; ok && len(data) > 0 {
				data = append([]byte{}, data...)
				at := int(v % uint64(len(data)))
				data[at] = []byte{0x80, 0xe2, 0xff, 0, ' '}[v%5]
			}
			out = append(binary.AppendUvarint(out, pick("length", uint64(len(data)))), data...)
		}
	}
	return out
}

// subMessages are the fields of ModelProto that are messages: pieces, the trainer's
// and the normalizer's settings.
var subMessages = map[int]bool{1: true, 2: true, 3: true}

func parseMessage(file []byte) (*messageFile, error) {
	f := &messageFile{}
	root, err := f.message(file, "", true)
	if err != nil {
		return nil, err
	}
	f.root = root
	var entries []part
	n := 0
	for _, it := range root.items {
		if it.number == 1 {
			n++
		}
		f.collect(it, it.number == 1 && n > many, &entries)
	}
	f.main = len(f.all)
	f.all = append(f.all, entries...)
	return f, nil
}

func (m *messageFile) collect(it *item, entry bool, entries *[]part) {
	add := func(what string) {
		if entry {
			*entries = append(*entries, part{it, what})
		} else {
			m.all = append(m.all, part{it, what})
		}
	}
	add("wire type")
	if it.wire != 2 {
		add("value")
		return
	}
	add("length")
	if it.sub == nil {
		add("text")
		return
	}
	for _, sub := range it.sub.items {
		m.collect(sub, entry, entries)
	}
}

func (m *messageFile) message(data []byte, path string, root bool) (*message, error) {
	out := &message{}
	for at := 0; at < len(data); {
		key, n := binary.Uvarint(data[at:])
		if n <= 0 {
			return nil, errCut
		}
		at += n
		it := &item{number: int(key >> 3), wire: key & 7, path: fmt.Sprintf("%s/%d[%d]", path, key>>3, len(out.items))}
		switch it.wire {
		case 0:
			v, n := binary.Uvarint(data[at:])
			if n <= 0 {
				return nil, errCut
			}
			it.value, at = v, at+n
		case 5:
			if at+4 > len(data) {
				return nil, errCut
			}
			it.value, at = uint64(binary.LittleEndian.Uint32(data[at:])), at+4
		case 2:
			v, n := binary.Uvarint(data[at:])
			if n <= 0 || v > uint64(len(data)-at-n) {
				return nil, errCut
			}
			at += n
			it.data = data[at : at+int(v)]
			at += int(v)
			if root && subMessages[it.number] {
				sub, err := m.message(it.data, it.path, false)
				if err != nil {
					return nil, err
				}
				it.sub = sub
			}
		default:
			return nil, fmt.Errorf("wire type %d", it.wire)
		}
		out.items = append(out.items, it)
	}
	return out, nil
}
