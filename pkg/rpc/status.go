package rpc

import (
	"context"
	"errors"
	"io"
	"net/http"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// mapped is a fault code with the gRPC code and the HTTP status that stand for it.
type mapped struct {
	fault fault.Code
	grpc  codes.Code
	http  int
}

// mapping lists each code once.
func mapping() []mapped {
	return []mapped{
		{fault.Invalid, codes.InvalidArgument, http.StatusBadRequest},
		{fault.OutOfRange, codes.OutOfRange, http.StatusBadRequest},
		{fault.NotFound, codes.NotFound, http.StatusNotFound},
		{fault.AlreadyExists, codes.AlreadyExists, http.StatusConflict},
		{fault.FailedPrecondition, codes.FailedPrecondition, http.StatusBadRequest},
		{fault.Aborted, codes.Aborted, http.StatusConflict},
		{fault.Exhausted, codes.ResourceExhausted, http.StatusTooManyRequests},
		{fault.Unavailable, codes.Unavailable, http.StatusServiceUnavailable},
		{fault.DeadlineExceeded, codes.DeadlineExceeded, http.StatusGatewayTimeout},
		{fault.Canceled, codes.Canceled, 499},
		{fault.Unauthenticated, codes.Unauthenticated, http.StatusUnauthorized},
		{fault.PermissionDenied, codes.PermissionDenied, http.StatusForbidden},
		{fault.Unimplemented, codes.Unimplemented, http.StatusNotImplemented},
		{fault.DataLoss, codes.DataLoss, http.StatusInternalServerError},
		{fault.Internal, codes.Internal, http.StatusInternalServerError},
	}
}

// Code maps a fault code to a gRPC code.
func Code(c fault.Code) codes.Code {
	for _, m := range mapping() {
		if m.fault == c {
			return m.grpc
		}
	}
	return codes.Internal
}

// FaultCode maps a gRPC code to a fault code.
func FaultCode(c codes.Code) fault.Code {
	for _, m := range mapping() {
		if m.grpc == c {
			return m.fault
		}
	}
	return fault.Internal
}

// HTTPStatus maps a fault code to an HTTP status.
func HTTPStatus(c fault.Code) int {
	for _, m := range mapping() {
		if m.fault == c {
			return m.http
		}
	}
	return http.StatusInternalServerError
}

// errorDomain is the domain of the reasons in a google.rpc.ErrorInfo.
const errorDomain = "lamina"

// ToStatus turns an error into a gRPC status error. The status of a fault has its code, its field
// as a google.rpc.BadRequest, its reason as a google.rpc.ErrorInfo and its retry hint as a
// google.rpc.RetryInfo. An error that is a status already stays as it is.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	var e *fault.Error
	if !errors.As(err, &e) {
		if s, ok := status.FromError(err); ok {
			return s.Err()
		}
		return status.Error(Code(fault.CodeOf(err)), err.Error())
	}
	s := status.New(Code(fault.CodeOf(err)), err.Error())
	var details []protoadapt.MessageV1
	if e.Field != "" {
		details = append(details,
			&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: e.Field,
				Description: e.Msg}}})
	}
	if e.Reason != "" {
		details = append(details, &errdetails.ErrorInfo{Reason: e.Reason, Domain: errorDomain})
	}
	if e.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(e.RetryAfter)})
	}
	if with, err := s.WithDetails(details...); err == nil {
		s = with
	}
	return s.Err()
}

// FromStatus turns the error of a call into a fault with its field, reason and retry hint. nil, io.EOF,
// faults, and errors without a status stay as they are.
func FromStatus(err error) error {
	var e *fault.Error
	if err == nil || errors.Is(err, io.EOF) || errors.As(err, &e) {
		return err
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	out := fault.New(FaultCode(s.Code()), "%s", s.Message())
	switch s.Code() { // keep errors.Is for contexts
	case codes.Canceled:
		out.Err = context.Canceled
	case codes.DeadlineExceeded:
		out.Err = context.DeadlineExceeded
	}
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			if d.GetDomain() == errorDomain {
				out.Reason = d.GetReason()
			}
		case *errdetails.RetryInfo:
			out.RetryAfter = d.GetRetryDelay().AsDuration()
		case *errdetails.BadRequest:
			if v := d.GetFieldViolations(); len(v) > 0 {
				out.Field, out.Msg = v[0].GetField(), v[0].GetDescription()
			}
		}
	}
	return out
}
