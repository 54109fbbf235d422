package ptxsim_test

import "math"

func f32(x float32) uint32 { return math.Float32bits(x) }
