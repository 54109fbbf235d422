package sample

// Uniform returns a number in [0,1) that depends only on seed and position: the upper 53 bits
// after two rounds of SplitMix64's finalizer.
func Uniform(seed, position uint64) float64 {
	return unit(mix(mix(seed+golden) ^ (position+1)*0xd1342543de82ef95))
}

const golden = 0x9e3779b97f4a7c15

// uniform is like Uniform, for one of several choices of a request and one of several uses of
// randomness. For choice 0 and the use of sampling it returns the number that Uniform returns.
func uniform(seed uint64, position int, choice uint32, use uint64) float64 {
	if choice == 0 && use == 0 {
		return Uniform(seed, uint64(position))
	}
	key := mix(seed + golden)
	key = mix(key ^ (uint64(choice)+1)*0xaef17502108ef2d9)
	key = mix(key ^ use*golden)
	return unit(mix(key ^ (uint64(position)+1)*0xd1342543de82ef95))
}

// Uses of randomness.
const (
	useDraw = iota
	useXTC
)

func unit(x uint64) float64 { return float64(x>>11) / (1 << 53) }

func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
