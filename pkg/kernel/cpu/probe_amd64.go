package cpu

func probeFMA512(n int)

func probeFMA256(n int)

func probeVNNI512(n int)

func probeWords256(n int)

func probePairs512(n int)
