package router

// This test is internal because the function that reads a journal is not exported.

import (
	"encoding/binary"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	journalv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/journal/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/journal"
)

func opening() *journalv1.Record {
	return &journalv1.Record{Writer: 7, Kind: &journalv1.Record_Open{Open: &journalv1.Open{
		RequestId: "r", Tenant: "t", Digest: "d", Fingerprint: "d/c", Prompt: []uint32{1, 2},
		Rules: &samplerv1.Rules{MaxTokens: 8},
	}}}
}

func tokens(first uint32, ids ...uint32) *journalv1.Record {
	t := &journalv1.Tokens{First: first, Ids: ids, Logprobs: make([]float32, len(ids))}
	return &journalv1.Record{Writer: 7, Kind: &journalv1.Record_Tokens{Tokens: t}}
}

func ending(e *journalv1.End) *journalv1.Record {
	return &journalv1.Record{Writer: 7, Kind: &journalv1.Record_End{End: e}}
}

func stored(t interface{ Fatal(...any) }, records ...*journalv1.Record) []journal.Record {
	var out []journal.Record
	for i, r := range records {
		data, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, journal.Record{Seq: uint64(i + 1), Data: data})
	}
	return out
}

var logKey = journal.Key{Tenant: "t", ID: "r"}

func TestReadLog_TokensThatWereWrittenAgainReplaceThose(t *testing.T) {
	taken := &journalv1.Record{Writer: 8, Kind: &journalv1.Record_Taken{Taken: &journalv1.Taken{}}}
	log, err := readLog(logKey, stored(t, opening(), tokens(0, 5, 6, 7), taken, tokens(2, 7, 8),
		ending(&journalv1.End{FinishReason: samplerv1.FinishReason_FINISH_REASON_LENGTH})))
	if err != nil {
		t.Fatal(err)
	}
	if len(log.ids) != 4 || log.ids[3] != 8 || len(log.logprobs) != 4 || len(log.top) != 4 || log.end == nil ||
		log.seq != 5 {
		t.Errorf("got %+v", log)
	}
}

func TestReadLog_DamageIsFound(t *testing.T) {
	bad := func(change func(*journalv1.Open)) *journalv1.Record {
		r := opening()
		change(r.GetOpen())
		return r
	}
	count := tokens(0, 1, 2)
	count.GetTokens().TopCounts = []uint32{1, 0}
	surplus := tokens(0, 1)
	surplus.GetTokens().Top = []*samplerv1.Candidate{{}}
	short := tokens(0, 1, 2)
	short.GetTokens().Logprobs = nil
	end := ending(&journalv1.End{Code: 1, Message: "m"})
	for name, records := range map[string][]*journalv1.Record{
		"nothing":            {},
		"no beginning":       {tokens(0, 1)},
		"two beginnings":     {opening(), opening()},
		"a gap":              {opening(), tokens(1, 1)},
		"too many tokens":    {opening(), tokens(0, 1, 2, 3, 4, 5, 6, 7, 8, 9)},
		"no tokens":          {opening(), tokens(0)},
		"no candidates":      {opening(), count},
		"too many":           {opening(), surplus},
		"no logprobs":        {opening(), short},
		"after the end":      {opening(), end, tokens(0, 1)},
		"no kind":            {opening(), {}},
		"an end for nothing": {opening(), ending(&journalv1.End{})},
		"two ends in one":    {opening(), ending(&journalv1.End{FinishReason: 1, Code: 3})},
		"an unknown reason":  {opening(), ending(&journalv1.End{FinishReason: 99})},
		"another tenant":     {bad(func(o *journalv1.Open) { o.Tenant = "u" })},
		"another request":    {bad(func(o *journalv1.Open) { o.RequestId = "q" })},
		"no prompt":          {bad(func(o *journalv1.Open) { o.Prompt = nil })},
		"no digest":          {bad(func(o *journalv1.Open) { o.Digest = "" })},
		"no limit":           {bad(func(o *journalv1.Open) { o.Rules.MaxTokens = 0 })},
		"wrong rules":        {bad(func(o *journalv1.Open) { o.Rules.Temperature = -1 })},
		"no rules":           {bad(func(o *journalv1.Open) { o.Rules = nil })},
	} {
		if _, err := readLog(logKey, stored(t, records...)); fault.CodeOf(err) != fault.DataLoss {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzReadLog reads records of any bytes. A log is consistent, or the error says what is damaged.
func FuzzReadLog(f *testing.F) {
	join := func(records []journal.Record) (out []byte) {
		for _, r := range records {
			out = binary.AppendUvarint(out, uint64(len(r.Data)))
			out = append(out, r.Data...)
		}
		return out
	}
	f.Add(join(stored(f, opening(), tokens(0, 5, 6, 7), tokens(1, 6, 7))))
	f.Add(join(stored(f, opening(), ending(&journalv1.End{FinishReason: 1}))))
	f.Fuzz(func(t *testing.T, data []byte) {
		var records []journal.Record
		for len(data) > 0 {
			n, used := binary.Uvarint(data)
			if used <= 0 || n > uint64(len(data)-used) {
				break
			}
			records = append(records, journal.Record{Seq: uint64(len(records) + 1), Data: data[used : used+int(n)]})
			data = data[used+int(n):]
		}
		log, err := readLog(logKey, records)
		if err != nil {
			if fault.CodeOf(err) != fault.DataLoss {
				t.Errorf("code %v: %v", fault.CodeOf(err), err)
			}
			return
		}
		if len(log.ids) != len(log.logprobs) || len(log.ids) != len(log.top) ||
			len(log.ids) > int(log.open.GetRules().GetMaxTokens()) || len(log.open.GetPrompt()) == 0 {
			t.Errorf("an inconsistent log: %d ids, %d log-probabilities, %d lists of candidates", len(log.ids),
				len(log.logprobs), len(log.top))
		}
	})
}
