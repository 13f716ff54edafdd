//! Converts the problems found by the source and the parser: unreadable files, rejected objects, and warnings about
//! accepted ones. All checks of single objects are in `api::validate`; this module assigns their codes.

use super::code::{self, Code};
use super::{Finding, Findings};
use crate::api::{ObjectKey, ProblemKind};
use crate::source::{LocatedProblem, Origin};
use crate::store::Store;

pub(super) fn check(store: &Store, found: &mut Findings) {
    for problem in store.source_problems().flat_map(|(_, list)| list) {
        let code = match problem.origin {
            Origin::File { .. } => &code::UNREADABLE,
            Origin::Cluster => &code::NOT_LISTED,
        };
        found.0.push(converted(code, None, problem));
    }
    let of_objects = store.rejected().chain(store.warnings());
    for (key, problem) in
        of_objects.flat_map(|(key, list)| list.iter().map(move |item| (key, item)))
    {
        found.0.push(finding(key, problem));
    }
}

/// The finding about a problem of one object.
pub(crate) fn finding(key: &ObjectKey, problem: &LocatedProblem) -> Finding {
    converted(code_of(problem.problem.kind), Some(key), problem)
}

fn code_of(kind: ProblemKind) -> &'static Code {
    match kind {
        ProblemKind::Invalid | ProblemKind::DeadRoute => &code::SCHEMA,
        ProblemKind::Expression => &code::REGEX,
        ProblemKind::Credential => &code::CREDENTIAL_NAME,
        ProblemKind::Deprecated => &code::DEPRECATED,
        ProblemKind::NoEffect => &code::NO_EFFECT,
        ProblemKind::UnknownField | ProblemKind::Suspicious => &code::SCHEMA_WARNING,
    }
}

fn converted(code: &'static Code, object: Option<&ObjectKey>, problem: &LocatedProblem) -> Finding {
    Finding {
        code,
        object: object.cloned(),
        origin: problem.origin.clone(),
        path: problem.problem.path.clone(),
        message: problem.problem.message.clone(),
        advice: problem.problem.advice.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{found, found_in_route as route, found_in_rule as rule};

    const TO: &str = "route: [{destination: {host: web}}]";

    #[test]
    fn each_kind_of_problem_has_its_own_code() {
        for (fields, code, path) in [
            ("timeout: soon", "IST0106", "timeout"),
            ("timeuot: 3s", "IST0133", "timeuot"),
            ("match: [{uri: {regex: 'a(?=b)'}}]", "IST0122", "match[0].uri.regex"),
            (
                "corsPolicy: {allowOrigins: [{regex: '*'}]}",
                "IST0122",
                "corsPolicy.allowOrigins[0].regex",
            ),
            ("mirror: {host: web}, mirrorPercent: 5", "IST0002", "mirrorPercent"),
            ("mirrorPercentage: {value: 5}", "WEIR0203", "mirrorPercentage"),
            ("fault: {delay: {percentage: {value: 5}}}", "IST0133", "fault.delay"),
        ] {
            assert_eq!(
                route(&format!("{TO}, {fields}")),
                [(code, format!("spec.http[0].{path}"))],
                "{fields}"
            );
        }
        assert_eq!(route("delegate: {}"), [("IST0106", "spec.http[0].delegate.name".to_owned())]);
        let credential =
            rule("host: other, trafficPolicy: {tls: {mode: SIMPLE, credentialName: x}}");
        assert_eq!(credential, [("WEIR0202", "spec.trafficPolicy.tls.credentialName".to_owned())]);
        assert_eq!(found("a: ["), [("WEIR0001", String::new())]);
    }
}
