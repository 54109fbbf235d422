package cpu

func probeFMA512(n int)

func probeFMA256(n int)

func probeVNNI512(n int)

func probeWords256(n int)

func probePairs512(n int)

//go:noescape
func probeRead512(p *byte, quads int)

//go:noescape
func probeRead256(p *byte, quads int)
