//go:build unix

package app

import (
	"log/slog"

	"github.com/lamina-mesh/lamina/pkg/reward"
	"github.com/lamina-mesh/lamina/pkg/reward/command"
)

// programs returns what runs the programs of rewards, or nil.
func programs(allowed bool, log *slog.Logger) reward.Runner {
	if !allowed {
		return nil
	}
	return command.Runner{Leftover: func(dir string, err error) {
		log.Warn("remove the folder of a reward's program", "folder", dir, "error", err)
	}}
}
