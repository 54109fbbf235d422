package responses

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	inputsDefault = 20  // items of a page
	inputsMost    = 100 // of a page that says how many it wants
)

// inputItem is an item of a request, with its id.
type inputItem struct {
	id   string
	body json.RawMessage
}

// inputs lists the items of the request: the last one first unless the query says order=asc, in pages of limit items
// behind the one that after names.
func (s *server) inputs(w http.ResponseWriter, r *http.Request) {
	found, ok := s.find(w, r)
	if !ok {
		return
	}
	items, err := identified(r.PathValue("id"), found.input)
	if err != nil {
		s.fail(w, err)
		return
	}
	page, more, err := pageOf(items, r.URL.Query())
	if err != nil {
		s.fail(w, err)
		return
	}
	out := object{"object": "list", "data": []json.RawMessage{}, "first_id": nil, "last_id": nil, "has_more": more}
	if len(page) > 0 {
		data := make([]json.RawMessage, len(page))
		for i, item := range page {
			data[i] = item.body
		}
		out["data"], out["first_id"], out["last_id"] = data, page[0].id, page[len(page)-1].id
	}
	s.json(w, http.StatusOK, out)
}

// identified gives every item an id. Items have one if they are of an earlier answer; the others get one that depends
// on the response and the place, so it is the same in every listing.
func identified(response string, input []json.RawMessage) ([]inputItem, error) {
	out := make([]inputItem, len(input))
	for i, raw := range input {
		var fields object
		if err := json.Unmarshal(raw, &fields); err != nil {
			return nil, fault.Wrap(fault.Internal, err, "read input item %d", i)
		}
		id, _ := fields["id"].(string)
		if id == "" {
			id = "item_" + response + "_" + strconv.Itoa(i)
			fields["id"] = id
			var err error
			if raw, err = json.Marshal(fields); err != nil {
				return nil, fault.Wrap(fault.Internal, err, "write input item %d", i)
			}
		}
		out[i] = inputItem{id, raw}
	}
	return out, nil
}

// pageOf returns the page that a query asks for, and whether there is more behind it.
func pageOf(items []inputItem, query url.Values) (page []inputItem, more bool, err error) {
	switch order := query.Get("order"); order {
	case "", "desc":
		slices.Reverse(items)
	case "asc":
	default:
		return nil, false, fault.Field("order", "want asc or desc, got %.40q", order)
	}
	limit := inputsDefault
	if text := query.Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > inputsMost {
			return nil, false, fault.Field("limit", "want 1..%d, got %.40q", inputsMost, text)
		}
	}
	if after := query.Get("after"); after != "" {
		i := slices.IndexFunc(items, func(item inputItem) bool { return item.id == after })
		if i < 0 {
			return nil, false, fault.Field("after", "there is no item %.80q", after)
		}
		items = items[i+1:]
	}
	if len(items) > limit {
		return items[:limit], true, nil
	}
	return items, false, nil
}
