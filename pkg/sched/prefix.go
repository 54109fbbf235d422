package sched

import (
	"container/heap"
	"math/bits"
	"slices"
	"time"
)

// none is the index of no page.
const none = -1

// node is what the prefix index knows about a full page. Nodes form a tree: the path from a root to a
// node holds the tokens of a prefix, a page of them at each step.
type node struct {
	indexed  bool
	space    int32 // tenant and namespace
	parent   int32 // page of the tokens before; none for the first page
	children int32 // indexed pages whose parent this is
	hash     uint64
	used     time.Duration // when a sequence last held the page
	heap     int32         // position in the tenant's heap of pages that may be evicted; none if it is not there
}

// index finds full pages by their tokens and all tokens before them. The hash of a page covers the
// hash of its parent. A hit is verified by comparing the tokens and the parent, so that a collision of
// hashes can neither change a text nor show one tenant's pages to another.
type index struct {
	pageLen int
	nodes   []node
	tokens  []int32 // of page i from i*pageLen
	byHash  map[uint64]uint32
}

func newIndex(pages, pageLen int) *index {
	x := &index{pageLen: pageLen, nodes: make([]node, pages), byHash: map[uint64]uint32{}}
	for i := range x.nodes {
		x.nodes[i].heap = none
	}
	return x
}

// mix adds a value to a hash: a multiplication by an odd constant and a rotation spread each bit.
func mix(h, v uint64) uint64 {
	h = (h ^ v) * 0x9e3779b97f4a7c15
	return bits.RotateLeft64(h, 29) * 0xbf58476d1ce4e5b9
}

func pageHash(parent uint64, tokens []int32) uint64 {
	h := mix(parent, uint64(len(tokens)))
	for _, t := range tokens {
		h = mix(h, uint64(uint32(t)))
	}
	return h
}

func rootHash(space int32) uint64 { return mix(0x94d049bb133111eb, uint64(uint32(space))) }

// find returns the page that holds tokens after the given parent, and the hash of that page. ok is
// false if there is none.
func (x *index) find(space, parent int32, parentHash uint64, tokens []int32) (page int32, hash uint64, ok bool) {
	hash = pageHash(parentHash, tokens)
	id, ok := x.byHash[hash]
	if !ok {
		return none, hash, false
	}
	n := &x.nodes[id]
	if n.space != space || n.parent != parent || !slices.Equal(x.tokens[int(id)*x.pageLen:][:x.pageLen], tokens) {
		return none, hash, false
	}
	return int32(id), hash, true
}

// walk calls visit with each page that holds the next tokens of a log, at most n positions of it.
func (x *index) walk(space int32, log []int32, n int, visit func(page int32)) {
	parent, hash := int32(none), rootHash(space)
	for at := 0; at+x.pageLen <= n; at += x.pageLen {
		page, h, ok := x.find(space, parent, hash, log[at:at+x.pageLen])
		if !ok {
			return
		}
		visit(page)
		parent, hash = page, h
	}
}

// add puts a page into the index. It returns false if its hash is taken by other tokens.
func (x *index) add(page uint32, space, parent int32, hash uint64, tokens []int32) bool {
	if _, taken := x.byHash[hash]; taken {
		return false
	}
	if x.tokens == nil {
		x.tokens = make([]int32, len(x.nodes)*x.pageLen)
	}
	copy(x.tokens[int(page)*x.pageLen:], tokens)
	x.nodes[page] = node{indexed: true, space: space, parent: parent, hash: hash, heap: none}
	x.byHash[hash] = page
	if parent != none {
		x.nodes[parent].children++
	}
	return true
}

// drop takes a page without children out of the index and returns its parent.
func (x *index) drop(page uint32) (parent int32) {
	n := &x.nodes[page]
	delete(x.byHash, n.hash)
	n.indexed = false
	if n.parent != none {
		x.nodes[n.parent].children--
	}
	return n.parent
}

// evictable is a tenant's heap of pages that may be evicted: indexed, held by no sequence and without
// children. The page that was used longest ago is first. Taking leaves only means that a prefix is
// shortened from its end, which is the part that the fewest requests share.
type evictable struct {
	x     *index
	pages []uint32
}

func (h *evictable) Len() int { return len(h.pages) }
func (h *evictable) Less(i, j int) bool {
	a, b := h.pages[i], h.pages[j]
	if h.x.nodes[a].used != h.x.nodes[b].used {
		return h.x.nodes[a].used < h.x.nodes[b].used
	}
	return a < b
}

func (h *evictable) Swap(i, j int) {
	h.pages[i], h.pages[j] = h.pages[j], h.pages[i]
	h.x.nodes[h.pages[i]].heap, h.x.nodes[h.pages[j]].heap = int32(i), int32(j)
}

func (h *evictable) Push(v any) {
	page := v.(uint32)
	h.x.nodes[page].heap = int32(len(h.pages))
	h.pages = append(h.pages, page)
}

func (h *evictable) Pop() any {
	page := h.pages[len(h.pages)-1]
	h.pages = h.pages[:len(h.pages)-1]
	h.x.nodes[page].heap = none
	return page
}

func (h *evictable) insert(page uint32) { heap.Push(h, page) }

func (h *evictable) remove(page uint32) {
	if at := h.x.nodes[page].heap; at != none {
		heap.Remove(h, int(at))
	}
}
