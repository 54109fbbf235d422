//go:build !unix

package app

import "github.com/lamina-mesh/lamina/pkg/reward"

// programs returns nil: processes have limits on Unix only.
func programs(bool) reward.Runner { return nil }
