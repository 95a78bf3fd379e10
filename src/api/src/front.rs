//! Answers each request: those about health on the thread that accepts, those for the API on threads of their own.

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::access::Access;
use crate::places::Seat;
use crate::problem::{Fault, Problem};
use crate::routes::with_headers;

/// The paths of the API begin so.
const API: &str = "/api/";

/// Ends the answer to a request whose connection has closed.
struct EndedOnDrop(JoinHandle<Response>);

impl Drop for EndedOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The API's routes, and the runtime that serves them.
#[derive(Clone)]
pub(crate) struct ApiFront {
    pub(crate) router: Router,
    pub(crate) runtime: Handle,
}

/// Answers requests.
#[derive(Clone)]
pub(crate) struct Front {
    pub(crate) health: Router,
    /// `None` if the API could not start.
    pub(crate) api: Option<ApiFront>,
    pub(crate) access: Arc<Access>,
}

impl Front {
    pub(crate) async fn respond(&self, mut request: Request, seat: &Seat) -> Response {
        if !request.uri().path().starts_with(API) {
            if seat.asks_again() {
                // Other connections come first: a peer can send a hundred requests at once, and all share this thread.
                tokio::task::yield_now().await;
            }
            return call(self.health.clone(), request).await;
        }
        let Some(api) = &self.api else {
            return with_headers(Problem::new(
                Fault::Busy,
                "the API could not start; see the scheduler's log",
            ));
        };
        // Checked here, so that a program without a key takes no place of the API.
        let caller = match self.access.caller(request.headers()) {
            Ok(caller) => caller,
            Err(problem) => return with_headers(problem),
        };
        if !seat.use_api() {
            let text = "too many connections use the API; try again in some seconds (api.max_connections)";
            return with_headers(Problem::new(Fault::Busy, text));
        }
        request.extensions_mut().insert(caller);
        let mut answer = EndedOnDrop(api.runtime.spawn(call(api.router.clone(), request)));
        (&mut answer.0).await.unwrap_or_else(|error| {
            if error.is_panic() {
                tracing::error!("a request to the API panicked");
            }
            with_headers(Problem::new(
                Fault::Internal,
                "the request failed; please report this with the scheduler's log",
            ))
        })
    }
}

fn call(router: Router, request: Request) -> impl Future<Output = Response> + Send {
    let answer = TowerToHyperService::new(router).call(request);
    async move {
        match answer.await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}
