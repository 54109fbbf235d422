package quant

import "math"

// Super-blocks have 256 elements. The scales of their sub-blocks are integers times a float16 that all share, and so
// are the minima. First every sub-block is fitted alone. Then the integers are rounded, and because rounding moves
// them away from the fit, each sub-block tries the neighbours of its integers with the codes that suit them. Then the
// float16 are fitted to all integers and codes, and the sub-blocks try again.

const (
	superLen = 256
	rounds   = 2 // of fitting the float16 and trying neighbours
)

// squareError returns the weighted squared error of the codes nearest to x. It may stop at any number that is bound or
// more.
func squareError(x, w []float32, scale, low float64, top int, bound float64) (sum float64) {
	inv := 0.0
	if scale > 0 {
		inv = 1 / scale
	}
	for i, v := range x {
		q := float64(nearest((float64(v)-low)*inv, 0, top))
		off := float64(v) - low - float64(scale*q)
		if sum += float64(weightAt(w, i) * off * off); sum >= bound {
			break
		}
	}
	return sum
}

// affineBlock is a super-block of Q4_K (top 15) or Q5_K (top 31): 8 sub-blocks of 32 elements.
// Element i of sub-block j stands for d*scale[j]*q - dmin*low[j].
type affineBlock struct {
	x, w       []float32
	top        int
	d, dmin    float32
	scale, low [8]int // 6 bits each
	codes      [superLen]byte
}

func (b *affineBlock) sub(j int) (x, w []float32) {
	if b.w != nil {
		w = b.w[32*j : 32*j+32]
	}
	return b.x[32*j : 32*j+32], w
}

// errorOf returns the error of sub-block j with the given integers, or some number that is bound or more.
func (b *affineBlock) errorOf(j, scale, low int, bound float64) float64 {
	x, w := b.sub(j)
	return squareError(x, w, float64(b.d)*float64(scale), -float64(b.dmin)*float64(low), b.top, bound)
}

// total is the error of the super-block.
func (b *affineBlock) total() (sum float64) {
	for j := range b.scale {
		sum += b.errorOf(j, b.scale[j], b.low[j], math.Inf(1))
	}
	return sum
}

// settle moves the integers of every sub-block to the best of their neighbours.
func (b *affineBlock) settle() {
	for j := range b.scale {
		scale, low := b.scale[j], b.low[j]
		best := b.errorOf(j, scale, low, math.Inf(1)) // first, because it is near the best and ends the others early
		for s := max(b.scale[j]-1, 0); s <= min(b.scale[j]+1, 63); s++ {
			for l := max(b.low[j]-1, 0); l <= min(b.low[j]+1, 63); l++ {
				if e := b.errorOf(j, s, l, best); e < best {
					best, scale, low = e, s, l
				}
			}
		}
		b.scale[j], b.low[j] = scale, low
	}
}

// encode sets the codes nearest to the elements.
func (b *affineBlock) encode() {
	for j := range b.scale {
		x, _ := b.sub(j)
		nearestAffine(x, float64(b.d)*float64(b.scale[j]), -float64(b.dmin)*float64(b.low[j]), b.top,
			b.codes[32*j:32*j+32])
	}
}

// refit returns the float16 that fit the integers and codes best: the least squares of d*a - dmin*c over all elements,
// where a is scale*q and c is low.
func (b *affineBlock) refit() (d, dmin float32, ok bool) {
	var aa, ac, cc, ax, cx float64
	for j := range b.scale {
		x, w := b.sub(j)
		for i, v := range x {
			wi, a, c := weightAt(w, i), float64(b.scale[j]*int(b.codes[32*j+i])), float64(b.low[j])
			aa += float64(wi * a * a)
			ac += float64(wi * a * c)
			cc += float64(wi * c * c)
			ax += float64(wi * a * float64(v))
			cx += float64(wi * c * float64(v))
		}
	}
	var fd, fm float64
	switch det := float64(aa*cc) - float64(ac*ac); {
	case det > 1e-9*aa*cc:
		fd = (float64(cc*ax) - float64(ac*cx)) / det
		fm = (float64(ac*ax) - float64(aa*cx)) / det
	case aa > 0 && cc == 0:
		fd = ax / aa
	case cc > 0 && aa == 0:
		fm = -cx / cc
	default:
		return 0, 0, false
	}
	return finite16(fd), finite16(fm), fd >= 0 && fm >= 0
}

// search sets all fields of the block.
func (b *affineBlock) search() {
	var scales, lows [8]float64
	var mostScale, mostLow float64
	for j := range scales {
		x, w := b.sub(j)
		var low float64
		scales[j], low = fitAffine(x, w, b.top, true, b.codes[32*j:32*j+32])
		lows[j] = -low
		mostScale, mostLow = max(mostScale, scales[j]), max(mostLow, lows[j])
	}
	b.d, b.dmin = finite16(mostScale/63), finite16(mostLow/63)
	for j := range scales {
		b.scale[j], b.low[j] = ratio(scales[j], b.d, 0, 63), ratio(lows[j], b.dmin, 0, 63)
	}
	b.settle()
	b.encode()
	best := b.total()
	for range rounds {
		next := *b
		var ok bool
		if next.d, next.dmin, ok = b.refit(); !ok {
			return
		}
		next.settle()
		next.encode()
		e := next.total()
		if e >= best {
			return
		}
		*b, best = next, e
	}
}

// ratio returns the integer in [low,high] that is nearest to v/unit.
func ratio(v float64, unit float32, low, high int) int {
	if unit == 0 {
		return 0
	}
	return nearest(v/float64(unit), low, high)
}

// affineSuper encodes a super-block of Q4_K or Q5_K.
func affineSuper(dst []byte, x, w []float32, top int) {
	b := affineBlock{x: x, w: w, top: top}
	b.search()
	putFloat16(dst, b.d)
	putFloat16(dst[2:], b.dmin)
	packScales(dst[4:16], &b.scale, &b.low)
	nibbles := dst[16:]
	if top == 31 {
		high := dst[16:48]
		clear(high)
		for e, q := range b.codes {
			high[e%32] |= q >> 4 << (e / 32)
		}
		nibbles = dst[48:]
	}
	for e := range superLen / 2 { // two sub-blocks share 32 bytes
		at := e/32*64 + e%32
		nibbles[e] = b.codes[at]&15 | b.codes[at+32]<<4
	}
}

// packScales packs 8 scales and 8 minima of 6 bits into 12 bytes: those of sub-blocks 0 to 3 are the low six bits of
// bytes 0 to 7; of the others the low four bits are in bytes 8 to 11 and the high two on top of bytes 0 to 7.
func packScales(dst []byte, scale, low *[8]int) {
	for j := range 4 {
		s, m := scale[j+4], low[j+4]
		dst[j] = byte(scale[j] | s>>4<<6)
		dst[j+4] = byte(low[j] | m>>4<<6)
		dst[j+8] = byte(s&15 | m&15<<4)
	}
}

// symmetricBlock is a super-block of Q6_K: 16 sub-blocks of 16 elements. Element i of sub-block j stands for
// d*scale[j]*q.
type symmetricBlock struct {
	x, w  []float32
	d     float32
	scale [16]int // 8 bits with a sign
	codes [superLen]int8
}

const q6Half = 32 // codes are in [-q6Half,q6Half-1]

func (b *symmetricBlock) sub(j int) (x, w []float32) {
	if b.w != nil {
		w = b.w[16*j : 16*j+16]
	}
	return b.x[16*j : 16*j+16], w
}

func (b *symmetricBlock) errorOf(j, scale int, bound float64) (sum float64) {
	x, w := b.sub(j)
	unit, inv := float64(b.d)*float64(scale), 0.0
	if unit != 0 {
		inv = 1 / unit
	}
	for i, v := range x {
		off := float64(v) - float64(unit*float64(nearest(float64(v)*inv, -q6Half, q6Half-1)))
		if sum += float64(weightAt(w, i) * off * off); sum >= bound {
			break
		}
	}
	return sum
}

func (b *symmetricBlock) total() (sum float64) {
	for j := range b.scale {
		sum += b.errorOf(j, b.scale[j], math.Inf(1))
	}
	return sum
}

func (b *symmetricBlock) settle() {
	for j := range b.scale {
		scale := b.scale[j]
		best := b.errorOf(j, scale, math.Inf(1))
		for s := max(b.scale[j]-1, -128); s <= min(b.scale[j]+1, 127); s++ {
			if e := b.errorOf(j, s, best); e < best {
				best, scale = e, s
			}
		}
		b.scale[j] = scale
	}
}

func (b *symmetricBlock) encode() {
	for j := range b.scale {
		x, _ := b.sub(j)
		nearestSymmetric(x, float64(b.d)*float64(b.scale[j]), q6Half, b.codes[16*j:16*j+16])
	}
}

func (b *symmetricBlock) refit() (d float32, ok bool) {
	var aa, ax float64
	for j := range b.scale {
		x, w := b.sub(j)
		for i, v := range x {
			wi, a := weightAt(w, i), float64(b.scale[j]*int(b.codes[16*j+i]))
			aa += float64(wi * a * a)
			ax += float64(wi * a * float64(v))
		}
	}
	if !(aa > 0) {
		return 0, false
	}
	return finite16(ax / aa), true
}

func (b *symmetricBlock) search() {
	var scales [16]float64
	most := 0.0
	for j := range scales {
		x, w := b.sub(j)
		scales[j] = fitSymmetric(x, w, q6Half, b.codes[16*j:16*j+16])
		if math.Abs(scales[j]) > math.Abs(most) {
			most = scales[j]
		}
	}
	b.d = finite16(most / -128) // so that the largest scale uses the integer of largest magnitude
	for j := range scales {
		b.scale[j] = ratio(scales[j], b.d, -128, 127)
	}
	b.settle()
	b.encode()
	best := b.total()
	for range rounds {
		next := *b
		var ok bool
		if next.d, ok = b.refit(); !ok {
			return
		}
		next.settle()
		next.encode()
		e := next.total()
		if e >= best {
			return
		}
		*b, best = next, e
	}
}

// q6_K encodes a super-block of Q6_K.
func q6_K(dst []byte, x, w []float32) {
	b := symmetricBlock{x: x, w: w}
	b.search()
	low, high, scales := dst[:128], dst[128:192], dst[192:208]
	clear(dst[:192])
	for e, c := range b.codes {
		q, part, at := byte(int(c)+q6Half), e/128, e%128
		low[64*part+at%64] |= q & 15 << (4 * (at / 64))
		high[32*part+at%32] |= q >> 4 << (2 * (at / 32))
	}
	for j, s := range b.scale {
		scales[j] = byte(int8(s))
	}
	putFloat16(dst[208:], b.d)
}
