//go:build unix

package app

import (
	"github.com/lamina-mesh/lamina/pkg/reward"
	"github.com/lamina-mesh/lamina/pkg/reward/command"
)

// programs returns what runs the programs of rewards, or nil.
func programs(allowed bool) reward.Runner {
	if !allowed {
		return nil
	}
	return command.Runner{}
}
