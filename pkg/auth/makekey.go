package auth

import (
	"context"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// CheckKey returns an error if the caller's own credentials are restricted to some verbs or models and a key is not
// restricted to the same or fewer. Such a caller may neither make the key nor learn its secret.
func CheckKey(ctx context.Context, k *Key) error {
	p := From(ctx)
	if p == nil || p.key == nil {
		return nil
	}
	if own := p.key.Verbs; len(own) > 0 {
		for _, v := range Verbs() {
			if k.May(v) && !slices.Contains(own, v) {
				return beyond("verbs", "the key would have the verb "+string(v)+", which your credentials do not have")
			}
		}
	}
	if own := p.key.Models; len(own) > 0 {
		if len(k.Models) == 0 {
			return beyond("models", "the key could use all models, and your credentials cannot")
		}
		for _, m := range k.Models {
			if !slices.Contains(own, m) {
				return beyond("models", "the key could use model "+m+", and your credentials cannot")
			}
		}
	}
	return nil
}

func beyond(field, text string) error {
	return &fault.Error{Code: fault.PermissionDenied, Field: field, Reason: "KEY_NOT_ALLOWED", Msg: text}
}
