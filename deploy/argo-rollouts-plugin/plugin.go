package main

import (
	"fmt"
	"log"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/argoproj/argo-rollouts/pkg/apis/rollouts/v1alpha1"
	"github.com/argoproj/argo-rollouts/rollout/trafficrouting/plugin/rpc"
	"github.com/argoproj/argo-rollouts/utils/istio"
	"github.com/argoproj/argo-rollouts/utils/plugin/types"
)

// The type that the controller logs.
const pluginType = "weir/gate"

// How far a weight may be from the one asked for, in percent: weir rounds to hundredths.
const tolerance = 0.01

// plugin verifies weights and leaves all writing to `trafficRouting.istio` of the same Rollout.
type plugin struct {
	gate *gate
}

var _ rpc.TrafficRouterPlugin = (*plugin)(nil)

func newPlugin(gates string, wait time.Duration) (*plugin, error) {
	gate, err := newGate(gates, wait)
	if err != nil {
		return nil, err
	}
	return &plugin{gate}, nil
}

// InitPlugin has nothing to do: the flags were read before.
func (*plugin) InitPlugin() types.RpcError { return types.RpcError{} }

// UpdateHash leaves the subsets to `istio`.
func (*plugin) UpdateHash(*v1alpha1.Rollout, string, string, []v1alpha1.WeightDestination) types.RpcError {
	return types.RpcError{}
}

// SetWeight leaves the weights to `istio`.
func (*plugin) SetWeight(*v1alpha1.Rollout, int32, []v1alpha1.WeightDestination) types.RpcError {
	return types.RpcError{}
}

// SetHeaderRoute leaves the route to `istio`.
func (*plugin) SetHeaderRoute(*v1alpha1.Rollout, *v1alpha1.SetHeaderRoute) types.RpcError {
	return types.RpcError{}
}

// SetMirrorRoute leaves the route to `istio`.
func (*plugin) SetMirrorRoute(*v1alpha1.Rollout, *v1alpha1.SetMirrorRoute) types.RpcError {
	return types.RpcError{}
}

// RemoveManagedRoutes leaves the routes to `istio`.
func (*plugin) RemoveManagedRoutes(*v1alpha1.Rollout) types.RpcError { return types.RpcError{} }

// Type names the plugin.
func (*plugin) Type() string { return pluginType }

// VerifyWeight says whether the weight is in force on every proxy of every replica of weir, in each VirtualService of the
// Rollout.
//
// That weir cannot be asked is not an error: the controller would not ask again before its next resynchronization. It
// asks again soon if the weight is not verified.
func (p *plugin) VerifyWeight(
	rollout *v1alpha1.Rollout, desired int32, additional []v1alpha1.WeightDestination,
) (types.RpcVerified, types.RpcError) {
	services, err := virtualServices(rollout)
	if err != nil {
		return types.NotVerified, types.RpcError{ErrorString: err.Error()}
	}
	wanted := wantedWeights(rollout, desired, additional)
	for _, service := range services {
		namespace, name := istio.GetVirtualServiceNamespaceName(service.Name)
		if namespace == "" {
			namespace = rollout.Namespace
		}
		if why := p.missing(namespace, name, service.Routes, wanted); why != "" {
			log.Printf("Rollout %s/%s: weight %d: VirtualService %s/%s: %s",
				rollout.Namespace, rollout.Name, desired, namespace, name, why)
			return types.NotVerified, types.RpcError{}
		}
	}
	return types.Verified, types.RpcError{}
}

// missing says why the weights are not in force and live; it is empty if they are.
func (p *plugin) missing(namespace, name string, routes []string, wanted []wantedWeight) string {
	found, err := p.gate.live(namespace, name)
	if err != nil {
		return err.Error()
	}
	if !found.Live {
		return "is not live: " + found.Message
	}
	return difference(found.Routes, routes, wanted)
}

// virtualServices returns those that `istio` writes.
func virtualServices(rollout *v1alpha1.Rollout) ([]v1alpha1.IstioVirtualService, error) {
	canary := rollout.Spec.Strategy.Canary
	if canary == nil || canary.TrafficRouting == nil || canary.TrafficRouting.Istio == nil {
		return nil, fmt.Errorf(
			"spec.strategy.canary.trafficRouting.istio: is missing; %s only verifies what it writes", pluginType)
	}
	all := canary.TrafficRouting.Istio.VirtualServices
	if one := canary.TrafficRouting.Istio.VirtualService; one != nil {
		all = append(slices.Clone(all), *one)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("spec.strategy.canary.trafficRouting.istio: names no VirtualService")
	}
	return all, nil
}

// wantedWeight is what a destination should get, in percent.
type wantedWeight struct {
	service string
	subset  string
	weight  float64
}

// String names the destination as the Rollout does.
func (w wantedWeight) String() string {
	if w.service == "" {
		return "subset " + w.subset
	}
	return w.service
}

// matches says whether a destination is this one, by the rule of Argo Rollouts: the first label of its host, or its
// subset.
func (w wantedWeight) matches(to destination) bool {
	service, _, _ := strings.Cut(to.Host, ".")
	return service == w.service || (w.subset != "" && to.Subset == w.subset)
}

// wantedWeights are those of the canary first, then of experiments. What is left is the stable version's.
func wantedWeights(
	rollout *v1alpha1.Rollout, desired int32, additional []v1alpha1.WeightDestination,
) []wantedWeight {
	canary := rollout.Spec.Strategy.Canary
	wanted := []wantedWeight{{service: canary.CanaryService, weight: float64(desired)}}
	if rule := canary.TrafficRouting.Istio.DestinationRule; rule != nil {
		wanted[0].subset = rule.CanarySubsetName
	}
	for _, to := range additional {
		wanted = append(wanted, wantedWeight{service: to.ServiceName, weight: float64(to.Weight)})
	}
	return wanted
}

// difference says which route does not have the weights; it is empty if all have them. Of HTTP routes, the named ones
// count, or all with the canary if none is named. Routes of TLS and TCP have no names, so one with the weights is enough.
func difference(routes []route, names []string, wanted []wantedWeight) string {
	checked, streams, why := 0, 0, ""
	for _, route := range routes {
		if !slices.ContainsFunc(route.Destinations, wanted[0].matches) {
			continue
		}
		isHTTP := strings.HasPrefix(route.Field, "spec.http[")
		if isHTTP && len(names) > 0 && !slices.Contains(names, route.Name) {
			continue
		}
		other := route.difference(wanted)
		switch {
		case isHTTP && other != "":
			return other
		case isHTTP:
			checked++
		case other != "":
			why = other
		default:
			streams++
		}
	}
	if checked+streams > 0 {
		return ""
	}
	if why != "" {
		return why
	}
	return fmt.Sprintf("has no weighted route to %s", wanted[0])
}

// difference says which destination has another weight than the wanted one.
func (r route) difference(wanted []wantedWeight) string {
	for _, want := range wanted {
		weight := 0.0
		for _, to := range r.Destinations {
			if want.matches(to) {
				weight += to.Weight
			}
		}
		if math.Abs(weight-want.weight) > tolerance {
			return fmt.Sprintf("%s: %s has weight %g, expected %g", r.Field, want, weight, want.weight)
		}
	}
	return ""
}
