package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/argoproj/argo-rollouts/pkg/apis/rollouts/v1alpha1"
	"github.com/argoproj/argo-rollouts/rollout/trafficrouting/plugin/rpc"
	"github.com/argoproj/argo-rollouts/utils/plugin/types"
	goplugin "github.com/hashicorp/go-plugin"
)

// weir answers every question about a VirtualService with what `answers` has for NAMESPACE/NAME.
func weir(t *testing.T, answers map[string]answer) *plugin {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		found, ok := answers[query.Get("namespace")+"/"+query.Get("name")]
		if r.URL.Path != "/gates/live" || query.Get("kind") != "virtualservice" || query.Get("timeout") != "1s" || !ok {
			http.Error(w, `{"code": 5, "message": "does not exist"}`, http.StatusNotFound)
			return
		}
		if err := json.NewEncoder(w).Encode(found); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	made, err := newPlugin(server.URL, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// split is a route of the canary and the stable service.
func split(field, name string, canary float64) route {
	return route{field, name, []destination{
		{Host: "web-stable.shop.svc.cluster.local", Weight: 100 - canary},
		{Host: "web-canary.shop.svc.cluster.local", Weight: canary},
	}}
}

func rollout(istio *v1alpha1.IstioTrafficRouting) *v1alpha1.Rollout {
	made := &v1alpha1.Rollout{}
	made.Namespace, made.Name = "shop", "web"
	made.Spec.Strategy.Canary = &v1alpha1.CanaryStrategy{
		CanaryService:  "web-canary",
		StableService:  "web-stable",
		TrafficRouting: &v1alpha1.RolloutTrafficRouting{Istio: istio},
	}
	return made
}

func one(name string, routes ...string) *v1alpha1.IstioTrafficRouting {
	return &v1alpha1.IstioTrafficRouting{VirtualService: &v1alpha1.IstioVirtualService{Name: name, Routes: routes}}
}

func TestAWeightIsVerifiedIfItIsInForceAndLive(t *testing.T) {
	bySubset := one("web")
	bySubset.DestinationRule = &v1alpha1.IstioDestinationRule{
		Name: "web", CanarySubsetName: "canary", StableSubsetName: "stable",
	}
	subsets := route{"spec.http[0]", "", []destination{
		{Host: "web.shop.svc.cluster.local", Subset: "stable", Weight: 80},
		{Host: "web.shop.svc.cluster.local", Subset: "canary", Weight: 20},
	}}
	experiment := split("spec.http[0]", "", 20)
	experiment.Destinations[0].Weight = 70
	experiment.Destinations = append(experiment.Destinations, destination{Host: "web-exp.shop.svc.cluster.local", Weight: 10})
	two := &v1alpha1.IstioTrafficRouting{VirtualServices: []v1alpha1.IstioVirtualService{{Name: "web"}, {Name: "web.edge"}}}
	twenty := answer{Live: true, Routes: []route{split("spec.http[0]", "", 20)}}
	for name, test := range map[string]struct {
		istio      *v1alpha1.IstioTrafficRouting
		answers    map[string]answer
		additional []v1alpha1.WeightDestination
		verified   types.RpcVerified
	}{
		"in force and live": {one("web"), map[string]answer{"shop/web": twenty}, nil, types.Verified},
		"not live":          {one("web"), map[string]answer{"shop/web": {Routes: twenty.Routes}}, nil, types.NotVerified},
		"another weight": {one("web"), map[string]answer{
			"shop/web": {Live: true, Routes: []route{split("spec.http[0]", "", 10)}},
		}, nil, types.NotVerified},
		"no such VirtualService": {one("web"), nil, nil, types.NotVerified},
		"no weighted route":      {one("web"), map[string]answer{"shop/web": {Live: true}}, nil, types.NotVerified},
		"of another namespace":   {one("web.edge"), map[string]answer{"edge/web": twenty}, nil, types.Verified},
		"by subset":              {bySubset, map[string]answer{"shop/web": {Live: true, Routes: []route{subsets}}}, nil, types.Verified},
		"both of two":            {two, map[string]answer{"shop/web": twenty, "edge/web": twenty}, nil, types.Verified},
		"one of two":             {two, map[string]answer{"shop/web": twenty}, nil, types.NotVerified},
		"the named route": {one("web", "primary"), map[string]answer{"shop/web": {Live: true, Routes: []route{
			split("spec.http[0]", "fixed", 50), split("spec.http[1]", "primary", 20),
		}}}, nil, types.Verified},
		"one of the routes": {one("web"), map[string]answer{"shop/web": {Live: true, Routes: []route{
			split("spec.http[0]", "", 20), split("spec.http[1]", "", 50),
		}}}, nil, types.NotVerified},
		"a TCP route": {one("web"), map[string]answer{"shop/web": {Live: true, Routes: []route{
			split("spec.tcp[0]", "", 50), split("spec.tcp[1]", "", 20),
		}}}, nil, types.Verified},
		"no TCP route": {one("web"), map[string]answer{"shop/web": {Live: true, Routes: []route{
			split("spec.tcp[0]", "", 50),
		}}}, nil, types.NotVerified},
		"with an experiment": {one("web"), map[string]answer{"shop/web": {Live: true, Routes: []route{experiment}}},
			[]v1alpha1.WeightDestination{{ServiceName: "web-exp", Weight: 10}}, types.Verified},
		"without the experiment": {one("web"), map[string]answer{"shop/web": twenty},
			[]v1alpha1.WeightDestination{{ServiceName: "web-exp", Weight: 10}}, types.NotVerified},
	} {
		t.Run(name, func(t *testing.T) {
			verified, err := weir(t, test.answers).VerifyWeight(rollout(test.istio), 20, test.additional)
			if err.HasError() || verified != test.verified {
				t.Errorf("%v, %v; expected %v", verified, err, test.verified)
			}
		})
	}
}

func TestWithoutIstioItSaysWhatIsMissing(t *testing.T) {
	for _, istio := range []*v1alpha1.IstioTrafficRouting{nil, {}} {
		verified, err := weir(t, nil).VerifyWeight(rollout(istio), 20, nil)
		if verified != types.NotVerified || !strings.Contains(err.Error(), "spec.strategy.canary.trafficRouting.istio") {
			t.Errorf("%v, %v", verified, err)
		}
	}
}

func TestAWeirThatCannotBeReachedVerifiesNothing(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	made, err := newPlugin(server.URL, 0)
	if err != nil {
		t.Fatal(err)
	}
	if verified, err := made.VerifyWeight(rollout(one("web")), 20, nil); verified != types.NotVerified || err.HasError() {
		t.Errorf("%v, %v", verified, err)
	}
}

func TestWrongFlagsAreNamed(t *testing.T) {
	for _, test := range []struct {
		gates, named string
		wait         time.Duration
	}{
		{"weir:15018", "--gates", time.Second},
		{"http://", "--gates", time.Second},
		{"http://weir:15018", "--wait", time.Minute},
		{"http://weir:15018", "--wait", -time.Second},
	} {
		if _, err := newPlugin(test.gates, test.wait); err == nil || !strings.HasPrefix(err.Error(), test.named) {
			t.Errorf("%+v: %v", test, err)
		}
	}
}

// Over the same RPC as with the controller.
func TestEveryMethodAnswersTheController(t *testing.T) {
	made := weir(t, map[string]answer{"shop/web": {Live: true, Routes: []route{split("spec.http[0]", "", 20)}}})
	client, _ := goplugin.TestPluginRPCConn(t, map[string]goplugin.Plugin{
		"RpcTrafficRouterPlugin": &rpc.RpcTrafficRouterPlugin{Impl: made},
	}, nil)
	defer client.Close()
	raw, err := client.Dispense("RpcTrafficRouterPlugin")
	if err != nil {
		t.Fatal(err)
	}
	router, ok := raw.(rpc.TrafficRouterPlugin)
	if !ok {
		t.Fatalf("%T", raw)
	}
	web := rollout(one("web"))
	for name, err := range map[string]types.RpcError{
		"InitPlugin":          router.InitPlugin(),
		"UpdateHash":          router.UpdateHash(web, "a", "b", nil),
		"SetWeight":           router.SetWeight(web, 20, nil),
		"SetHeaderRoute":      router.SetHeaderRoute(web, &v1alpha1.SetHeaderRoute{}),
		"SetMirrorRoute":      router.SetMirrorRoute(web, &v1alpha1.SetMirrorRoute{}),
		"RemoveManagedRoutes": router.RemoveManagedRoutes(web),
	} {
		if err.HasError() {
			t.Errorf("%s: %v", name, err)
		}
	}
	if router.Type() != pluginType {
		t.Error(router.Type())
	}
	if verified, err := router.VerifyWeight(web, 20, nil); verified != types.Verified || err.HasError() {
		t.Errorf("%v, %v", verified, err)
	}
}
