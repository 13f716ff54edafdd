//! What has to be done to the Secret with the webhook's certificate, and when. Pure decisions.
//!
//! A certificate is renewed halfway through its life, with an authority of its own. First the new authority joins the
//! old one in the Secret, and the new certificate waits in it. When the API server has had time to learn of both, the new
//! certificate replaces the old one. The old authority stays until it expires, so a replica or an API server that is
//! late fails no request.

use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;

use crate::tls::{
    CertificateError, IssuedCertificate, KeyedCertificate, ServedCertificate, issue, still_valid,
};

/// The longest time that API servers get to learn of an authority.
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);

/// What the Secret contains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// The certificate that is served.
    pub current: Option<KeyedCertificate>,
    /// The certificate that will be served when its authority is trusted.
    pub next: Option<KeyedCertificate>,
    /// The authorities to trust, in PEM.
    pub authorities: String,
}

/// What kind of certificates are wanted.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// The names of the server.
    pub names: Vec<String>,
    /// How long a certificate is valid.
    pub lifetime: Duration,
}

/// How the API server checks the certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// The API server asks nobody: there is no webhook configuration, or not for this weir.
    NotAsked,
    /// The configuration has other authorities than the Secret.
    Outdated,
    /// It has had those of the Secret since then, as far as is known.
    Since(SystemTime),
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Step {
    /// The Secret is to be written.
    Write(Contents),
    /// Nothing is to be done until then, or until something changes.
    WaitUntil(SystemTime),
}

impl Wanted {
    /// How long API servers get to learn of an authority.
    fn pause(&self) -> Duration {
        (self.lifetime / 10).min(LONGEST_PAUSE)
    }

    /// The next step.
    pub(crate) fn step(
        &self,
        contents: &Contents,
        trust: Trust,
        now: SystemTime,
    ) -> Result<Step, CertificateError> {
        let authorities = still_valid(&contents.authorities, now);
        let current = self.usable(contents.current.as_ref(), &authorities, now);
        let next = self.usable(contents.next.as_ref(), &authorities, now);
        Ok(match (current, next) {
            // Nobody can use the webhook, so nothing gets worse.
            (None, None) => {
                let IssuedCertificate { certificate, authority } = self.issue(now)?;
                let authorities = authorities + &authority;
                Step::Write(Contents { current: Some(certificate), next: None, authorities })
            }
            (None, Some(_)) => {
                Step::Write(Contents { current: contents.next.clone(), next: None, authorities })
            }
            (Some(current), None) => {
                let renew_at = time(current.valid_until) - self.lifetime / 2;
                if now < renew_at {
                    return Ok(Step::WaitUntil(renew_at));
                }
                let IssuedCertificate { certificate, authority } = self.issue(now)?;
                Step::Write(Contents {
                    current: contents.current.clone(),
                    next: Some(certificate),
                    authorities: authorities + &authority,
                })
            }
            (Some(current), Some(_)) => {
                let switch_at = match trust {
                    Trust::NotAsked => now,
                    Trust::Since(since) => since + self.pause(),
                    // At the end of its life there is nothing to lose.
                    Trust::Outdated => time(current.valid_until),
                };
                if now < switch_at {
                    return Ok(Step::WaitUntil(switch_at));
                }
                Step::Write(Contents { current: contents.next.clone(), next: None, authorities })
            }
        })
    }

    /// The certificate, if clients that know the authorities accept it.
    fn usable(
        &self,
        pair: Option<&KeyedCertificate>,
        authorities: &str,
        now: SystemTime,
    ) -> Option<ServedCertificate> {
        let served = pair.and_then(|pair| ServedCertificate::of(pair).ok())?;
        served.is_accepted(authorities, &self.names, now).then_some(served)
    }

    fn issue(&self, now: SystemTime) -> Result<IssuedCertificate, CertificateError> {
        issue(&self.names, now, self.lifetime)
    }
}

fn time(at: Timestamp) -> SystemTime {
    at.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    const MINUTE: Duration = Duration::from_secs(60);

    fn wanted() -> Wanted {
        Wanted { names: vec!["weir.weir-system.svc".to_owned()], lifetime: 90 * DAY }
    }

    fn written(step: Step) -> Contents {
        match step {
            Step::Write(contents) => contents,
            Step::WaitUntil(at) => panic!("waits until {at:?}"),
        }
    }

    fn is_served(contents: &Contents, authorities: &str, now: SystemTime) -> bool {
        let current = ServedCertificate::of(contents.current.as_ref().unwrap()).unwrap();
        current.is_accepted(authorities, &wanted().names, now)
    }

    #[test]
    fn at_every_step_of_a_renewal_the_served_certificate_is_trusted_by_the_previous_and_the_next_bundle()
     {
        let (wanted, start) = (wanted(), SystemTime::now());
        let step = |contents: &Contents, trust, now| wanted.step(contents, trust, now).unwrap();
        let first = written(step(&Contents::default(), Trust::NotAsked, start));
        assert!(first.next.is_none() && is_served(&first, &first.authorities, start));
        let Step::WaitUntil(renewal) = step(&first, Trust::Since(start), start) else { panic!() };
        let halfway = renewal.duration_since(start).unwrap();
        assert!(halfway > 44 * DAY && halfway <= 45 * DAY, "{halfway:?}");

        let prepared = written(step(&first, Trust::Since(start), renewal));
        assert_eq!(prepared.current, first.current);
        assert!(prepared.authorities.starts_with(&first.authorities) && prepared.next.is_some());
        assert!(is_served(&prepared, &first.authorities, renewal));
        // It waits until the bundle is in the configuration, and a while longer.
        let day_later = renewal + DAY;
        assert!(matches!(step(&prepared, Trust::Outdated, day_later), Step::WaitUntil(_)));
        let trusted = Trust::Since(day_later);
        let early = day_later + 4 * MINUTE;
        assert!(matches!(step(&prepared, trusted, early), Step::WaitUntil(_)));
        let late = day_later + 5 * MINUTE;
        let renewed = written(step(&prepared, trusted, late));
        assert_eq!(renewed.current, prepared.next);
        assert_eq!((&renewed.next, &renewed.authorities), (&None, &prepared.authorities));
        assert!(is_served(&renewed, &prepared.authorities, late));

        // The next renewal drops the first authority, which has expired.
        let Step::WaitUntil(again) = step(&renewed, trusted, late) else { panic!() };
        let prepared = written(step(&renewed, trusted, again + 2 * DAY));
        assert_eq!(prepared.authorities.matches("BEGIN CERTIFICATE").count(), 2);
        assert!(is_served(&prepared, &prepared.authorities, again));
    }

    #[test]
    fn what_is_missing_expired_or_for_other_names_is_replaced_at_once() {
        let (wanted, now) = (wanted(), SystemTime::now());
        let good = written(wanted.step(&Contents::default(), Trust::NotAsked, now).unwrap());
        let other_names = Wanted { names: vec!["weir.other.svc".to_owned()], ..wanted.clone() };
        let without =
            |authorities: &str| Contents { authorities: authorities.to_owned(), ..good.clone() };
        let broken = Contents {
            current: good
                .current
                .clone()
                .map(|pair| KeyedCertificate { key: String::new(), ..pair }),
            ..good.clone()
        };
        let foreign = written(wanted.step(&Contents::default(), Trust::NotAsked, now).unwrap());
        for (wanted, contents, now) in [
            (&wanted, good.clone(), now + 91 * DAY),
            (&other_names, good.clone(), now),
            (&wanted, without(""), now),
            (&wanted, without(&foreign.authorities), now),
            (&wanted, broken, now),
        ] {
            let new = written(wanted.step(&contents, Trust::Outdated, now).unwrap());
            assert_ne!(new.current, contents.current);
            let served = ServedCertificate::of(new.current.as_ref().unwrap()).unwrap();
            assert!(served.is_accepted(&new.authorities, &wanted.names, now));
        }
    }

    #[test]
    fn a_renewal_that_another_replica_began_goes_on() {
        let (wanted, now) = (wanted(), SystemTime::now());
        let first = written(wanted.step(&Contents::default(), Trust::NotAsked, now).unwrap());
        let later = now + 60 * DAY;
        let prepared = written(wanted.step(&first, Trust::Since(now), later).unwrap());
        // A new replica does not know since when the authorities are trusted.
        let Step::WaitUntil(at) = wanted.step(&prepared, Trust::Since(later), later).unwrap()
        else {
            panic!()
        };
        assert_eq!(at, later + 5 * MINUTE);
        // The certificate expires while nobody is elected.
        let renewed = written(wanted.step(&prepared, Trust::Outdated, now + 91 * DAY).unwrap());
        assert_eq!(renewed.current, prepared.next);
    }
}
