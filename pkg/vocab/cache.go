package vocab

// wordCache caches the ids of short pieces. It is direct-mapped: a new piece replaces
// the one in its slot, so the cache never grows. One encoding uses it at a time.
type wordCache struct {
	slots []cached
}

const (
	cacheSlots = 1 << 15 // 1.5 MiB
	maxWord    = 23      // maximum length of a piece in bytes
	maxIDs     = 5       // maximum number of ids
)

// cached is a piece, its length in the last byte of the key, and its ids.
type cached struct {
	key [3]uint64
	ids [maxIDs]int32
	n   int32 // number of ids; 0 means a free slot
}

// wordKey packs the bytes of a piece of at most maxWord bytes. text begins with the
// piece; if enough bytes follow, they are loaded eight at a time.
func wordKey(text string, n int) (key [3]uint64) {
	if len(text) < 24 {
		return shortKey(text[:n])
	}
	a, b, c := le64(text), le64(text[8:]), le64(text[16:])
	switch {
	case n < 8:
		a &= 1<<(8*uint(n)) - 1
		b, c = 0, 0
	case n < 16:
		b &= 1<<(8*uint(n-8)) - 1
		c = 0
	default:
		c &= 1<<(8*uint(n-16)) - 1
	}
	return [3]uint64{a, b, c | uint64(n)<<56}
}

func le64(s string) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

func shortKey(s string) (key [3]uint64) {
	for i := 0; i < len(s); i++ {
		key[i>>3] |= uint64(s[i]) << (8 * uint(i&7))
	}
	key[2] |= uint64(len(s)) << 56
	return key
}

func (c *wordCache) slot(key *[3]uint64) *cached {
	h := (key[0] ^ key[1]*0xff51afd7ed558ccd ^ key[2]*0xc4ceb9fe1a85ec53) * 0x9e3779b97f4a7c15
	h ^= h >> 29
	h *= 0xbf58476d1ce4e5b9
	return &c.slots[h>>(64-15)]
}
