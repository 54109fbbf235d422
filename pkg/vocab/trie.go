package vocab

import "math/bits"

// trie finds the tokens that a text begins with. All edges are in one open-addressed
// hash table keyed by node and byte.
type trie struct {
	keys  []uint32 // node<<8 | byte, plus one; 0 is free
	next  []int32
	ids   []int32 // by node, -1 if no token ends there
	shift uint
}

// newTrie builds the trie of texts, which are not empty, and their ids.
func newTrie(texts []string, ids []int32) *trie {
	bytes := 1
	for _, t := range texts {
		bytes += len(t)
	}
	bytes = min(bytes, 1<<24) // node numbers stay below 2^24
	size := bits.Len(uint(bytes)*2 | 15)
	t := &trie{keys: make([]uint32, 1<<size), next: make([]int32, 1<<size), ids: []int32{-1}, shift: uint(64 - size)}
	for i, text := range texts {
		at := int32(0)
		for k := 0; k < len(text); k++ {
			slot := t.slot(at, text[k])
			if t.keys[slot] == 0 {
				if len(t.ids) >= bytes {
					return t
				}
				t.keys[slot] = uint32(at)<<8 | uint32(text[k]) + 1
				t.next[slot] = int32(len(t.ids))
				t.ids = append(t.ids, -1)
			}
			at = t.next[slot]
		}
		t.ids[at] = ids[i]
	}
	return t
}

func (t *trie) slot(node int32, c byte) uint64 {
	key := uint32(node)<<8 | uint32(c) + 1
	mask := uint64(len(t.keys) - 1)
	i := uint64(key) * 0x9e3779b97f4a7c15 >> t.shift
	for t.keys[i] != 0 && t.keys[i] != key {
		i = (i + 1) & mask
	}
	return i
}

// step follows a byte from a node. It returns -1 if no token continues with it.
func (t *trie) step(node int32, c byte) int32 {
	i := t.slot(node, c)
	if t.keys[i] == 0 {
		return -1
	}
	return t.next[i]
}
