//go:build !unix

package app

import (
	"log/slog"

	"github.com/lamina-mesh/lamina/pkg/reward"
)

// programs returns nil: processes have limits on Unix only.
func programs(bool, *slog.Logger) reward.Runner { return nil }
