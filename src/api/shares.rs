//! The share of requests that each destination of a route gets.

use super::{Destination, HttpRouteDestination};

/// The shares, 0 to 1, of destinations with these weights. A single destination gets everything, whatever its weight.
/// If there are several and all weights are 0, none gets anything.
pub(crate) fn shares(weights: impl IntoIterator<Item = u32>) -> Vec<f64> {
    let weights: Vec<f64> = weights.into_iter().map(f64::from).collect();
    let total: f64 = weights.iter().sum();
    match weights.as_slice() {
        [_] => vec![1.0],
        _ if total > 0.0 => weights.into_iter().map(|weight| weight / total).collect(),
        _ => vec![0.0; weights.len()],
    }
}

/// The share of a destination: the sum over all entries of the route that name it.
pub(crate) fn share_of(route: &[HttpRouteDestination], destination: Option<&Destination>) -> f64 {
    let weights = route.iter().map(|entry| u32::try_from(entry.weight).unwrap_or_default());
    let named = route.iter().map(|entry| entry.destination.as_ref() == destination);
    shares(weights).into_iter().zip(named).filter_map(|(share, named)| named.then_some(share)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(entries: &[(&str, i32)]) -> Vec<HttpRouteDestination> {
        let entries = entries.iter().map(|(host, weight)| HttpRouteDestination {
            destination: Some(Destination { host: (*host).to_owned(), ..Default::default() }),
            weight: *weight,
            headers: None,
        });
        entries.collect()
    }

    #[test]
    fn weights_are_parts_of_their_sum() {
        assert_eq!(shares([1, 3]), [0.25, 0.75]);
        assert_eq!(shares([u32::MAX, u32::MAX]), [0.5, 0.5]);
        assert_eq!(shares([0]), [1.0]);
        assert_eq!(shares([0, 0]), [0.0, 0.0]);
        assert_eq!(shares([]), [0.0; 0]);
    }

    #[test]
    fn entries_for_one_destination_add_up_and_negative_weights_count_as_none() {
        let route = route(&[("a", 20), ("b", 60), ("a", 20), ("c", -5)]);
        let shares = ["a", "b", "c", "d"].map(|host| {
            share_of(&route, Some(&Destination { host: host.to_owned(), ..Default::default() }))
        });
        assert_eq!(shares, [0.4, 0.6, 0.0, 0.0]);
        assert_eq!(share_of(&route, None), 0.0);
    }
}
