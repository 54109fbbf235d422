package cpu

import (
	"encoding/binary"
	"unsafe"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// cacheOps are the loops of one instruction family that convert between float32 and the types of KV
// caches, 16 elements at a time.
type cacheOps struct {
	toFloat16   func(dst *byte, src *float32, groups int)
	fromFloat16 func(dst *float32, src *byte, groups int)
	keys        func(dst *float32, src *byte, groups int, scales *float32) // a scale for each of 16 positions
	value       func(dst *float32, src *byte, groups int, scale *float32)
}

// cachePortable returns the loops in plain Go.
func cachePortable() cacheOps {
	each := func(dst *float32, src *byte, groups int, of func(b byte, lane int) float32) {
		bytes := unsafe.Slice(src, groups*lanes)
		for i := range unsafe.Slice(dst, groups*lanes) {
			*at(dst, i) = of(bytes[i], i%lanes)
		}
	}
	return cacheOps{
		toFloat16: func(dst *byte, src *float32, groups int) {
			out := unsafe.Slice(dst, 2*groups*lanes)
			for i, v := range unsafe.Slice(src, groups*lanes) {
				binary.LittleEndian.PutUint16(out[2*i:], tensor.Float16bits(v))
			}
		},
		fromFloat16: func(dst *float32, src *byte, groups int) {
			in := unsafe.Slice(src, 2*groups*lanes)
			for i := range unsafe.Slice(dst, groups*lanes) {
				*at(dst, i) = tensor.Float16(binary.LittleEndian.Uint16(in[2*i:]))
			}
		},
		keys: func(dst *float32, src *byte, groups int, scales *float32) {
			each(dst, src, groups, func(b byte, lane int) float32 { return float32(int8(b)) * *at(scales, lane) })
		},
		value: func(dst *float32, src *byte, groups int, scale *float32) {
			each(dst, src, groups, func(b byte, _ int) float32 { return float32(int8(b)) * *scale })
		},
	}
}

// storeRows is the number of positions in one piece of Store's work.
const storeRows = 64

// Store writes keys and values to a paged cache.
func (s *Set) Store(kv kernel.KV[float32], pos int, k, v kernel.Buffer[float32], heads, d int) {
	width := heads * d
	rows := len(k) / width
	s.each((rows+storeRows-1)/storeRows, 4*len(k), func(i int) {
		lo, hi := i*storeRows, min((i+1)*storeRows, rows)
		if kv.Type == kernel.KVF16 && width%lanes == 0 {
			s.storeFloat16(kv, pos+lo, k[lo*width:hi*width], v[lo*width:hi*width], heads, d)
			return
		}
		kv.Write(pos+lo, k[lo*width:hi*width], v[lo*width:hi*width], heads, d)
	})
}

// storeFloat16 is kv.Write for caches of float16.
func (s *Set) storeFloat16(kv kernel.KV[float32], pos int, k, v []float32, heads, d int) {
	b := s.buffer(len(k))
	defer s.give(b)
	keys, values := bytesOf(*b)[:2*len(k)], bytesOf(*b)[2*len(k):]
	s.cache.toFloat16(&keys[0], &k[0], len(k)/lanes)
	s.cache.toFloat16(&values[0], &v[0], len(v)/lanes)
	n := kv.PageLen
	for ; len(keys) > 0; pos++ {
		p, col := kv.Page(pos/n), pos%n
		for head := range heads {
			to, key := p.KeyCodes[2*(head*d*n+col):], keys[2*head*d:2*(head+1)*d]
			for i := 0; i < len(key); i += 2 {
				to[i*n], to[i*n+1] = key[i], key[i+1]
			}
			copy(p.ValueCodes[2*(head*n+col)*d:], values[2*head*d:2*(head+1)*d])
		}
		keys, values = keys[2*heads*d:], values[2*heads*d:]
	}
}

// viewBlocks points w's tables at blocks block to end-1 of keys and values; block 0 begins at
// position from. Blocks that no loop can read as stored, and blocks of pages with another length, are
// converted into scratch.
func (s *Set) viewBlocks(call *attendCall, t *attendTile, from, block, end int, w *attendScratch) {
	kv, d := &t.span.KV, call.a.D
	size := attendBlock * d
	whole := kv.PageLen == attendBlock && d%lanes == 0
	w.float16 = whole && kv.Type == kernel.KVF16 && s.attend.float16.scores != nil
	for b := block; b < end; b++ {
		pos := from + b*attendBlock
		page := pos / kv.PageLen
		if w.float16 {
			p := kv.Page(page)
			w.keys[b], w.values[b] = (*float32)(unsafe.Pointer(&p.KeyCodes[2*t.kv*size])),
				(*float32)(unsafe.Pointer(&p.ValueCodes[2*t.kv*size]))
			continue
		}
		if kv.Type == kernel.KVFull && kv.PageLen == attendBlock {
			w.keys[b], w.values[b] = &kv.Page(page).Keys[t.kv*size], &kv.Page(page).Values[t.kv*size]
			continue
		}
		if len(w.blocks) < 2*attendChunk*d {
			w.blocks = make([]float32, 2*attendChunk*d)
		}
		keys, values := w.blocks[2*b*size:(2*b+1)*size], w.blocks[(2*b+1)*size:(2*b+2)*size]
		w.keys[b], w.values[b] = &keys[0], &values[0]
		if !whole {
			copyBlock(kv, keys, values, pos, t.kv, d)
			continue
		}
		switch p := kv.Page(page); kv.Type {
		case kernel.KVF16:
			s.cache.fromFloat16(&keys[0], &p.KeyCodes[2*t.kv*size], d)
			s.cache.fromFloat16(&values[0], &p.ValueCodes[2*t.kv*size], d)
		default:
			s.cache.keys(&keys[0], &p.KeyCodes[t.kv*size], d, &p.KeyScales[t.kv*attendBlock])
			for i := range attendBlock {
				s.cache.value(&values[i*d], &p.ValueCodes[t.kv*size+i*d], d/lanes, &p.ValueScales[t.kv*attendBlock+i])
			}
		}
	}
}

// copyBlock reads the block of keys [D,16] and values [16,D] at position pos.
func copyBlock(kv *kernel.KV[float32], keys, values []float32, pos, head, d int) {
	clear(keys)
	for i := range min(attendBlock, len(kv.Pages)*kv.PageLen-pos) {
		value := values[i*d : (i+1)*d]
		kv.Key(value, pos+i, head)
		for j, v := range value {
			keys[j*attendBlock+i] = v
		}
		kv.Value(value, pos+i, head)
	}
}

// prefetchBlocks prefetches some blocks of keys, or of values, from a position on. They are too far
// apart for the hardware prefetcher.
func (s *Set) prefetchBlocks(t *attendTile, d, from, blocks int, keys bool) {
	kv, size := &t.span.KV, attendBlock*d
	if kv.PageLen != attendBlock {
		return
	}
	bytes := size * [...]int{kernel.KVFull: 4, kernel.KVF16: 2, kernel.KVQ8: 1}[kv.Type]
	for page := from / attendBlock; page < min(from/attendBlock+blocks, len(kv.Pages)); page++ {
		var p unsafe.Pointer
		switch full := kv.Type == kernel.KVFull; {
		case full && keys:
			p = unsafe.Pointer(&kv.Page(page).Keys[t.kv*size])
		case full:
			p = unsafe.Pointer(&kv.Page(page).Values[t.kv*size])
		case keys:
			p = unsafe.Pointer(&kv.Page(page).KeyCodes[t.kv*bytes])
		default:
			p = unsafe.Pointer(&kv.Page(page).ValueCodes[t.kv*bytes])
		}
		s.gemm.prefetch(uintptr(p), 64, (bytes+63)/64, 1)
	}
}
