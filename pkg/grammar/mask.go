package grammar

type stateMask struct{}

type maskCache struct{}

func (c *maskCache) forget() {}
