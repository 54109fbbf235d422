package grammar

type stateMask struct{}

type positionMask struct{}
