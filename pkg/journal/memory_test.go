package journal_test

import (
	"testing"

	"github.com/lamina-mesh/lamina/pkg/journal"
	"github.com/lamina-mesh/lamina/pkg/journal/journaltest"
)

func TestMemory_KeepsTheContract(t *testing.T) {
	journaltest.Run(t, func(_ *testing.T, l journal.Limits) journal.Journal { return journal.NewMemory(l) })
}
