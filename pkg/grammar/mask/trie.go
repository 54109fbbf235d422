package mask

import (
	"bytes"
	"cmp"
	"slices"
)

// trie is a trie of byte strings in preorder: the subtree of node i is the nodes from i+1 to
// skip[i], and the tokens of node i precede those of its subtree in ids.
type trie struct {
	b     []byte  // the byte that leads to each node
	skip  []int32 // the first node after its subtree
	first []int32 // index of its first token in ids; one more entry than nodes
	ids   []int32
}

// spelled is a token or the rest of one.
type spelled struct {
	text []byte
	id   int32
}

// newTrie builds a trie of tokens, none of them empty. It sorts them.
func newTrie(tokens []spelled) *trie {
	slices.SortFunc(tokens, func(a, b spelled) int {
		return cmp.Or(bytes.Compare(a.text, b.text), cmp.Compare(a.id, b.id))
	})
	t := &trie{ids: make([]int32, 0, len(tokens))}
	var open []int32 // nodes from the root to the last token's
	var last []byte
	for _, token := range tokens {
		common := 0
		for common < len(last) && common < len(token.text) && last[common] == token.text[common] {
			common++
		}
		t.close(&open, common)
		for _, b := range token.text[common:] {
			open = append(open, int32(len(t.b)))
			t.b = append(t.b, b)
			t.skip = append(t.skip, 0)
			t.first = append(t.first, int32(len(t.ids)))
		}
		t.ids = append(t.ids, token.id)
		last = token.text
	}
	t.close(&open, 0)
	t.first = append(t.first, int32(len(t.ids)))
	return t
}

func (t *trie) close(open *[]int32, depth int) {
	for _, node := range (*open)[depth:] {
		t.skip[node] = int32(len(t.b))
	}
	*open = (*open)[:depth]
}

func (t *trie) size() int32 { return int32(len(t.b)) }

// at returns the tokens that end at a node.
func (t *trie) at(node int32) []int32 { return t.ids[t.first[node]:t.first[node+1]] }

// below lists the tokens of a node's subtree by their bytes from that node on.
func (t *trie) below(node int32, out []spelled) []spelled {
	var text []byte
	var walk func(from, to int32)
	walk = func(from, to int32) {
		for i := from; i < to; i = t.skip[i] {
			text = append(text, t.b[i])
			for _, id := range t.at(i) {
				out = append(out, spelled{bytes.Clone(text), id})
			}
			walk(i+1, t.skip[i])
			text = text[:len(text)-1]
		}
	}
	walk(node, t.skip[node])
	return out
}
