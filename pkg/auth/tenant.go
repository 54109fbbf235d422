package auth

import (
	"context"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// TenantKey is the gRPC metadata key of the tenant; as an HTTP header it is Lamina-Tenant.
const TenantKey = "lamina-tenant"

// MaxTenant is the maximum length of a tenant's name in bytes.
const MaxTenant = 64

type tenantKey struct{}

// WithTenant returns a context that carries a tenant.
func WithTenant(ctx context.Context, tenant string) context.Context {
	return context.WithValue(ctx, tenantKey{}, tenant)
}

// Tenant returns the tenant of the request that ctx belongs to. It is empty for requests that name
// none; they share one tenant.
func Tenant(ctx context.Context) string {
	tenant, _ := ctx.Value(tenantKey{}).(string)
	return tenant
}

// ReadTenant checks the values that a request has for TenantKey: none or one name of at most 64
// printable ASCII characters. It returns the name.
func ReadTenant(values []string) (string, error) {
	switch len(values) {
	case 0:
		return "", nil
	case 1:
	default:
		return "", fault.Field(TenantKey, "is given %d times", len(values))
	}
	name := values[0]
	if len(name) > MaxTenant {
		return "", fault.Field(TenantKey, "%d bytes are more than %d", len(name), MaxTenant)
	}
	for i := range len(name) {
		if name[i] < ' ' || name[i] > '~' {
			return "", fault.Field(TenantKey, "byte %d is not printable ASCII", i)
		}
	}
	return name, nil
}
