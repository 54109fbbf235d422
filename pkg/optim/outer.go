package optim

// Outer is the outer optimizer of DiLoCo (Douillard et al., DiLoCo: Distributed Low-Communication Training of
// Language Models, 2023): SGD with Nesterov momentum on the mean difference between the common weights and those
// of the workers.
type Outer struct {
	Rate     float64
	Momentum float64
}

// Step steps the common weights. sum is the sum of the differences of workers workers, and is overwritten.
// Every product is rounded to float32 before it is added, so that all processors give the same bits.
func (o Outer) Step(weights, moment, sum []float32, workers int) {
	share, rate, decay := 1/float32(workers), float32(o.Rate), float32(o.Momentum)
	for i, d := range sum {
		g := float32(d * share)
		kept := float32(decay * moment[i])
		m := float32(kept + g)
		moment[i] = m
		ahead := float32(decay * m)
		step := float32(rate * float32(g+ahead))
		weights[i] = float32(weights[i] - step)
	}
}

// Mix moves the weights of a worker to the common ones, of which it leaves share, from 0 to 1, of its own.
func Mix(own, common []float32, share float64) {
	if share == 0 {
		copy(own, common)
		return
	}
	a, b := float32(share), float32(1-share)
	for i, v := range own {
		mine := float32(a * v)
		theirs := float32(b * common[i])
		own[i] = float32(mine + theirs)
	}
}
